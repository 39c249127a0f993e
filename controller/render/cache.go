package render

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
)

// DefaultCacheSize is enough for a few hundred bundles of usual size.
const DefaultCacheSize = 256 << 20

// DefaultTimeout is for one rendering; usual charts take some milliseconds.
const DefaultTimeout = time.Minute

// maxRunaways is how many renderings may go on after their time is over before nothing new is rendered.
const maxRunaways = 4

// Errors are kept, about so many bytes of them, so long: a template may fail by chance or by the time of day.
const (
	maxWrong = 4 << 20
	wrongFor = 10 * time.Minute
)

type failure struct {
	err error
	at  time.Time
}

// CacheOptions of NewCache. The zero value keeps results in memory.
type CacheOptions struct {
	Size     int64         // bytes in memory, about; default DefaultCacheSize
	Dir      string        // of results on disk; empty: none
	DiskSize int64         // bytes there, about; default DefaultDiskSize
	Timeout  time.Duration // of one rendering; default DefaultTimeout
	Warn     func(error)   // gets what did not work but changes no result; may be nil
}

// Cache keeps results by Input.Key, so that clusters with the same options cost one rendering. It also keeps the charts and the documents that results are
// made of, for inputs that differ a little. What is wrong with an input is kept for a while: bundles are looked at whenever a
// cluster says something, and one that fails after seconds must not cost them each time. Safe for concurrent use; two calls with the same key at
// the same time render once.
//
// A rendering that takes too long is given up, but it cannot be stopped. Its bundle is refused until it ends; when there are
// several such, all that is not known yet is refused, so that tenants cannot take all of the hub's time. One that ends the
// process, again and again, is left alone for a while, if there is a directory to remember it in.
type Cache struct {
	o       CacheOptions
	flight  singleflight.Group
	results *lru[[32]byte, Result]
	wrong   *lru[[32]byte, failure]
	memory  *memory
	disk    *disk // nil: none
	begun   suspects
	turns   chan struct{}
	run     func(Input, *memory) (Result, error)
	renders atomic.Uint64

	mu       sync.Mutex
	runaways map[[32]byte]string // names of bundles by their files
}

// NewCache makes a cache. What stands in o.Dir is used again.
func NewCache(o CacheOptions) (*Cache, error) {
	if o.Size <= 0 {
		o.Size = DefaultCacheSize
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	c := &Cache{o: o, results: newLRU[[32]byte, Result](o.Size / 2), wrong: newLRU[[32]byte, failure](maxWrong), memory: newMemory(o.Size / 2), turns: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))), runaways: map[[32]byte]string{}, run: render}
	if o.Dir != "" {
		var err error
		if c.disk, err = openDisk(o.Dir, o.DiskSize); err != nil {
			return nil, err
		}
		c.begun = suspects{dir: o.Dir, active: map[[32]byte]int{}}
		c.begun.forget(time.Now())
	}
	return c, nil
}

// Render returns the kept result of an equal input, or renders. The result is shared: read only.
func (c *Cache) Render(in Input) (Result, error) {
	if in.ResourcesKey == [32]byte{} {
		in.ResourcesKey = ResourcesKey(in.Resources)
	}
	if in.Vars != nil {
		src, err := c.memory.sources(in)
		if err != nil {
			return Result{}, err
		}
		if in, err = in.expanded(src.files); err != nil {
			return Result{}, err
		}
	}
	key := in.Key()
	if r, ok := c.results.get(key); ok {
		return r, nil
	}
	if f, ok := c.wrong.get(key); ok && time.Since(f.at) < wrongFor {
		return Result{}, f.err
	}
	v, err, _ := c.flight.Do(string(key[:]), func() (any, error) {
		if r, ok := c.results.get(key); ok { // rendered between get and Do
			return r, nil
		}
		r, err := c.find(key, in)
		if err == nil {
			c.results.put(key, r, resultSize(r.Bundle))
		}
		return r, err
	})
	return v.(Result), err
}

// find reads the result from disk or renders.
func (c *Cache) find(key [32]byte, in Input) (Result, error) {
	if c.disk != nil {
		if r, ok := c.disk.get(key); ok {
			return r, nil
		}
	}
	r, err := c.render(key, in)
	if err == nil && c.disk != nil {
		if err := c.disk.put(key, r); err != nil && c.o.Warn != nil {
			c.o.Warn(err)
		}
	}
	return r, err
}

// render renders with a time limit.
func (c *Cache) render(key [32]byte, in Input) (Result, error) {
	if err := c.held(in); err != nil {
		return Result{}, err
	}
	c.turns <- struct{}{} // a rendering needs a processor and much memory
	if err := c.begun.begin(in.ResourcesKey, in.Name, time.Now()); err != nil {
		<-c.turns
		return Result{}, err
	}
	c.renders.Add(1)
	type answer struct {
		r   Result
		err error
	}
	done := make(chan answer, 1)
	go func() {
		r, err := c.run(in, c.memory)
		c.begun.end(in.ResourcesKey)
		if err != nil {
			c.wrong.put(key, failure{err, time.Now()}, int64(len(err.Error()))+256)
		}
		done <- answer{r, err}
	}()
	timer := time.NewTimer(c.o.Timeout)
	defer timer.Stop()
	select {
	case a := <-done:
		<-c.turns
		return a.r, a.err
	case <-timer.C:
	}
	c.mu.Lock()
	c.runaways[in.ResourcesKey] = in.Name
	c.mu.Unlock()
	<-c.turns
	go func() { // until it ends
		<-done
		c.mu.Lock()
		delete(c.runaways, in.ResourcesKey)
		c.mu.Unlock()
	}()
	return Result{}, fmt.Errorf("render: bundle %s takes more than %v and was given up: look for loops over large numbers in its templates", in.Name, c.o.Timeout)
}

// held refuses what must not be rendered now.
func (c *Cache) held(in Input) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.runaways[in.ResourcesKey]; ok {
		return fmt.Errorf("render: bundle %s took more than %v before and is still at it: it is not tried again until that ends; change its templates, or restart the hub", in.Name, c.o.Timeout)
	}
	if len(c.runaways) >= maxRunaways {
		var names []string
		for _, n := range c.runaways {
			names = append(names, n)
		}
		return fmt.Errorf("render: nothing new is rendered while %d bundles (%s among them) take more than %v: change their templates and restart the hub", len(names), slices.Min(names), c.o.Timeout)
	}
	return nil
}

// Renders counts how often something was rendered, failures included.
func (c *Cache) Renders() uint64 { return c.renders.Load() }
