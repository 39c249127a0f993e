package render

import (
	"sync/atomic"

	"golang.org/x/sync/singleflight"
)

// DefaultCacheSize is enough for a few hundred bundles of usual size.
const DefaultCacheSize = 256 << 20

// Cache keeps results in memory by Input.Key, so that clusters with the same options cost one rendering, and a chart with
// random functions does not give a new release at every pass. It also keeps the charts and the documents that results are
// made of, for inputs that differ a little. Failures are not kept. Safe for concurrent use; two calls with the same key at
// the same time render once.
type Cache struct {
	flight  singleflight.Group
	results *lru[[32]byte, Result]
	memory  *memory
	renders atomic.Uint64
}

// NewCache makes a cache of about size bytes; 0 means DefaultCacheSize.
func NewCache(size int64) *Cache {
	if size <= 0 {
		size = DefaultCacheSize
	}
	return &Cache{results: newLRU[[32]byte, Result](size / 2), memory: newMemory(size / 2)}
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
	v, err, _ := c.flight.Do(string(key[:]), func() (any, error) {
		if r, ok := c.results.get(key); ok { // rendered between get and Do
			return r, nil
		}
		c.renders.Add(1)
		r, err := render(in, c.memory)
		if err == nil {
			c.results.put(key, r, resultSize(r.Bundle))
		}
		return r, err
	})
	return v.(Result), err
}

// Renders counts how often something was rendered, failures included.
func (c *Cache) Renders() uint64 { return c.renders.Load() }
