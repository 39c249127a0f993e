package charts

import (
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// cached returns the archive with that digest, from the disk or by fetch, and verifies it. An empty digest is not known
// beforehand: fetched every time.
func (c *Client) cached(digest string, fetch func() ([]byte, error)) ([]byte, error) {
	file := ""
	if c.o.CacheDir != "" && digest != "" {
		file = filepath.Join(c.o.CacheDir, digest+".tgz")
		if data, err := os.ReadFile(file); err == nil && verify(data, digest) == nil {
			return data, nil
		}
	}
	data, err := fetch()
	if err != nil {
		return nil, err
	}
	if err := verify(data, digest); err != nil {
		return nil, err
	}
	if file != "" {
		// A cache that cannot be written costs time, no more; what stands in it is verified when it is read.
		if os.MkdirAll(c.o.CacheDir, 0o700) == nil {
			_ = renameio.WriteFile(file, data, 0o600)
		}
	}
	return data, nil
}
