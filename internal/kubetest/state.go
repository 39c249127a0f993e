package kubetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Save copies the cluster's database into dir, which must not exist, as a backup of the datastore does: while the cluster runs.
func (c *Cluster) Save(dir string) (err error) {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil {
		return errors.New("the cluster does not run")
	}
	// Nothing may write between the copies of the database and of its log.
	pid, ok := r.ready.Children["kine"]
	if !ok {
		return errors.New("the cluster has no process kine")
	}
	if err := freeze(pid); err != nil {
		return fmt.Errorf("hold the datastore: %w", err)
	}
	defer func() { err = errors.Join(err, thaw(pid)) }()
	return os.CopyFS(dir, os.DirFS(c.database()))
}

// Load stops the cluster, puts a saved database in the place of its own and starts it again.
func (c *Cluster) Load(ctx context.Context, dir string) error {
	if err := c.halt(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(c.database()); err != nil {
		return err
	}
	if err := os.CopyFS(c.database(), os.DirFS(dir)); err != nil {
		return err
	}
	return c.start(ctx)
}

func (c *Cluster) database() string { return filepath.Join(c.o.Dir, "kine") }
