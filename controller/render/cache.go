package render

import (
	"container/list"
	"sync"

	"golang.org/x/sync/singleflight"
)

// DefaultCacheSize is enough for a few hundred bundles of usual size.
const DefaultCacheSize = 256 << 20

// Cache keeps results in memory by Input.Key, so that clusters with the same options cost one rendering, and a chart with
// random functions does not give a new release at every pass. Failures are not kept. Safe for concurrent use; two calls
// with the same key at the same time render once.
type Cache struct {
	size   int64
	flight singleflight.Group

	mu      sync.Mutex
	used    int64
	byKey   map[[32]byte]*list.Element
	recent  *list.List // of *cached, most recently used in front
	renders uint64
}

type cached struct {
	key    [32]byte
	size   int64
	result Result
}

// NewCache makes a cache of about size bytes of objects; 0 means DefaultCacheSize.
func NewCache(size int64) *Cache {
	if size <= 0 {
		size = DefaultCacheSize
	}
	return &Cache{size: size, byKey: map[[32]byte]*list.Element{}, recent: list.New()}
}

// Render returns the kept result of an equal input, or renders. The result is shared: read only.
func (c *Cache) Render(in Input) (Result, error) {
	key := in.Key()
	if r, ok := c.get(key); ok {
		return r, nil
	}
	v, err, _ := c.flight.Do(string(key[:]), func() (any, error) {
		if r, ok := c.get(key); ok { // rendered between get and Do
			return r, nil
		}
		r, err := WithNotes(in)
		c.put(key, r, err)
		return r, err
	})
	return v.(Result), err
}

// Renders counts how often something was rendered, failures included.
func (c *Cache) Renders() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.renders
}

func (c *Cache) get(key [32]byte) (Result, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byKey[key]
	if !ok {
		return Result{}, false
	}
	c.recent.MoveToFront(e)
	return e.Value.(*cached).result, true
}

func (c *Cache) put(key [32]byte, r Result, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renders++
	if err != nil {
		return
	}
	e := &cached{key: key, result: r, size: 1024}
	for _, o := range r.Bundle.Objects() {
		e.size += int64(len(o.JSON)) + 256
	}
	c.byKey[key] = c.recent.PushFront(e)
	for c.used += e.size; c.used > c.size && c.recent.Len() > 1; {
		old := c.recent.Remove(c.recent.Back()).(*cached)
		delete(c.byKey, old.key)
		c.used -= old.size
	}
}
