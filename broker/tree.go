package broker

import "strings"

// tree maps topics or filters to values, one level of the name a node. It finds the filters that match a topic (fan-out)
// and the topics a filter selects (replay) without looking at the rest. It is not safe for concurrent use.
type tree[T any] struct {
	root node[T]
	n    int
}

type node[T any] struct {
	child map[string]*node[T]
	val   T
	set   bool
}

func (t *tree[T]) get(key string) (v T, ok bool) {
	n := &t.root
	for {
		level, rest, more := strings.Cut(key, "/")
		if n = n.child[level]; n == nil {
			return v, false
		}
		if !more {
			return n.val, n.set
		}
		key = rest
	}
}

// put sets the value of key. The key's levels are kept: it must not be part of a larger buffer.
func (t *tree[T]) put(key string, v T) {
	n := &t.root
	for {
		level, rest, more := strings.Cut(key, "/")
		c := n.child[level]
		if c == nil {
			if n.child == nil {
				n.child = map[string]*node[T]{}
			}
			c = &node[T]{}
			n.child[level] = c
		}
		n = c
		if !more {
			break
		}
		key = rest
	}
	if !n.set {
		t.n++
	}
	n.val, n.set = v, true
}

func (t *tree[T]) del(key string) {
	if t.root.del(key) {
		t.n--
	}
}

func (n *node[T]) del(key string) (deleted bool) {
	level, rest, more := strings.Cut(key, "/")
	c := n.child[level]
	if c == nil {
		return false
	}
	if more {
		deleted = c.del(rest)
	} else {
		var zero T
		deleted = c.set
		c.val, c.set = zero, false
	}
	if !c.set && len(c.child) == 0 {
		delete(n.child, level)
		if len(n.child) == 0 {
			n.child = nil
		}
	}
	return deleted
}

// matching visits the values of all filters in the tree that match topic. MQTT 5 §4.7: "a/#" matches "a".
func (t *tree[T]) matching(topic string, visit func(T)) { t.root.matching(topic, visit) }

func (n *node[T]) matching(topic string, visit func(T)) {
	if c := n.child["#"]; c != nil && c.set {
		visit(c.val)
	}
	level, rest, more := strings.Cut(topic, "/")
	for _, key := range [2]string{level, "+"} {
		c := n.child[key]
		switch {
		case c == nil:
		case more:
			c.matching(rest, visit)
		default:
			if c.set {
				visit(c.val)
			}
			if h := c.child["#"]; h != nil && h.set {
				visit(h.val)
			}
		}
		if level == "+" {
			return
		}
	}
}

// selected visits the values of all topics in the tree that filter selects.
func (t *tree[T]) selected(filter string, visit func(T)) { t.root.selected(filter, visit) }

func (n *node[T]) selected(filter string, visit func(T)) {
	level, rest, more := strings.Cut(filter, "/")
	switch level {
	case "#":
		n.all(visit)
		return
	case "+":
		for _, c := range n.child {
			c.down(rest, more, visit)
		}
	default:
		if c := n.child[level]; c != nil {
			c.down(rest, more, visit)
		}
	}
}

func (n *node[T]) down(rest string, more bool, visit func(T)) {
	if more {
		n.selected(rest, visit)
	} else if n.set {
		visit(n.val)
	}
}

func (n *node[T]) all(visit func(T)) {
	if n.set {
		visit(n.val)
	}
	for _, c := range n.child {
		c.all(visit)
	}
}
