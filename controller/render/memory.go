package render

import (
	"container/list"
	"sync"

	"shoal.dev/shoal/bundlefmt"
)

// memory is what renderings share: files and charts of bundles, and what was made of texts. Templates give most documents
// again when a value changes, and reading YAML costs more than the templates do. Nothing in it may be changed.
type memory struct {
	bundles   *lru[[32]byte, *sources]
	documents *lru[textKey, []document]
}

func newMemory(size int64) *memory {
	return &memory{bundles: newLRU[[32]byte, *sources](size / 2), documents: newLRU[textKey, []document](size / 2)}
}

// textKey is a text and how it is read.
type textKey struct {
	how  reading
	text string
}

type reading byte

const (
	yamlStream   reading = iota
	strictStream         // a key that stands twice is an error
	helmStream           // cut as Helm cuts
	helmDocument
)

// sources are the files of a bundle, and the charts in them.
type sources struct {
	files map[string][]byte

	mu     sync.Mutex
	charts map[string]*loaded // by what the chart is made of
}

// read returns the documents of a text, which parse reads when they are not known.
func (m *memory) read(how reading, text string, parse func() ([]document, error)) ([]document, error) {
	key := textKey{how, text}
	if docs, ok := m.documents.get(key); ok {
		return docs, nil
	}
	docs, err := parse()
	if err != nil {
		return nil, err
	}
	size := int64(len(text)) + 256
	for _, d := range docs {
		size += 256
		for _, o := range d.objects {
			size += int64(len(o.JSON)) + 256
		}
	}
	m.documents.put(key, docs, size)
	return docs, nil
}

// sources decodes the files of an input.
func (m *memory) sources(in Input) (*sources, error) {
	known := in.ResourcesKey != [32]byte{}
	if known {
		if s, ok := m.bundles.get(in.ResourcesKey); ok {
			return s, nil
		}
	}
	files, err := decode(in.Resources)
	if err != nil {
		return nil, err
	}
	s := &sources{files: files, charts: map[string]*loaded{}}
	if known {
		size := int64(1024)
		for name, data := range files {
			size += 4 * int64(len(name)+len(data)) // with the chart
		}
		m.bundles.put(in.ResourcesKey, s, size)
	}
	return s, nil
}

// chart returns the chart made of what key says, which load loads when it is not known.
func (s *sources) chart(key string, load func() (*loaded, error)) (*loaded, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, ok := s.charts[key]; ok {
		return l, nil
	}
	l, err := load()
	if err != nil {
		return nil, err
	}
	if len(s.charts) >= 64 { // a chart for each of many sets of overlays: rather load again than keep all
		clear(s.charts)
	}
	s.charts[key] = l
	return l, nil
}

// lru keeps about size bytes of what was used last. Safe for concurrent use.
type lru[K comparable, V any] struct {
	size int64

	mu     sync.Mutex
	used   int64
	byKey  map[K]*list.Element
	recent *list.List // of *kept[K, V], most recently used in front
}

type kept[K comparable, V any] struct {
	key   K
	value V
	size  int64
}

func newLRU[K comparable, V any](size int64) *lru[K, V] {
	return &lru[K, V]{size: size, byKey: map[K]*list.Element{}, recent: list.New()}
}

func (l *lru[K, V]) get(key K) (v V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.byKey[key]
	if !ok {
		return v, false
	}
	l.recent.MoveToFront(e)
	return e.Value.(*kept[K, V]).value, true
}

// put keeps the newest value whatever its size.
func (l *lru[K, V]) put(key K, v V, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.byKey[key]; ok {
		l.used -= l.recent.Remove(e).(*kept[K, V]).size
	}
	l.byKey[key] = l.recent.PushFront(&kept[K, V]{key: key, value: v, size: size})
	for l.used += size; l.used > l.size && l.recent.Len() > 1; {
		old := l.recent.Remove(l.recent.Back()).(*kept[K, V])
		delete(l.byKey, old.key)
		l.used -= old.size
	}
}

func resultSize(b *bundlefmt.Bundle) int64 {
	size := int64(1024)
	for _, o := range b.Objects() {
		size += int64(len(o.JSON)) + 256
	}
	return size
}
