package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"
)

var unknownField = regexp.MustCompile(`^unknown field "(.*)"$`)

// decodeStrict reads a node into a value and says every field that is unknown or of another type, with its line. In a status,
// which the hub writes, fields of a newer hub are left out.
func decodeStrict(file string, n *yamlv3.Node, into any) error {
	at := func(path, format string, args ...any) error {
		return fmt.Errorf("%s:%d: %s", file, lineOf(n, path).Line, fmt.Sprintf(format, args...))
	}
	noTimestamps(n)
	var m map[string]any
	if err := n.Decode(&m); err != nil {
		return yamlProblem(file, err)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return at("", "%v", err)
	}
	strict, err := kjson.UnmarshalStrict(data, into)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return at(wrong.Field, "%s: want %s, not a %s", wrong.Field, wrong.Type, wrong.Value)
	case err != nil:
		return at("", "%v", err)
	}
	var errs []error
	for _, e := range strict {
		field := unknownField.FindStringSubmatch(e.Error())
		switch {
		case field == nil:
			errs = append(errs, at("", "%v", e))
		case !strings.HasPrefix(field[1], "status."):
			errs = append(errs, at(field[1], "%v", e))
		}
	}
	return errors.Join(errs...)
}

// child is the value of a key of a map, or nil.
func child(n *yamlv3.Node, key string) *yamlv3.Node {
	_, value := entry(n, key)
	return value
}

// entry is a key of a map and its value, or nil; one whose letters differ in case only will do, since such options count.
func entry(n *yamlv3.Node, key string) (k, value *yamlv3.Node) {
	for i := 0; i+1 < len(n.Content) && n.Kind == yamlv3.MappingNode; i += 2 {
		switch {
		case n.Content[i].Value == key:
			return n.Content[i], n.Content[i+1]
		case k == nil && strings.EqualFold(n.Content[i].Value, key):
			k, value = n.Content[i], n.Content[i+1]
		}
	}
	return k, value
}

// lineOf is the deepest node on a path such as targets[2].helm.values that exists; of a map's value it is the key.
func lineOf(n *yamlv3.Node, path string) *yamlv3.Node {
	at := n
	for key := range strings.SplitSeq(path, ".") {
		key, index, _ := strings.Cut(key, "[")
		k, next := entry(n, key)
		if next == nil {
			return at
		}
		at, n = k, next
		if i, err := strconv.Atoi(strings.TrimSuffix(index, "]")); err == nil && i < len(n.Content) && n.Kind == yamlv3.SequenceNode {
			n = n.Content[i]
			at = n
		}
	}
	return at
}

// noTimestamps makes what looks like a date the text that it is in JSON.
func noTimestamps(n *yamlv3.Node) {
	if n.Kind == yamlv3.ScalarNode && n.ShortTag() == "!!timestamp" {
		n.Tag = "!!str"
	}
	for _, c := range n.Content {
		noTimestamps(c)
	}
}

var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

// yamlProblem puts the line where people look for it.
func yamlProblem(file string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s:%s: %s", file, m[1], m[2])
	}
	return fmt.Errorf("%s: %s", file, text)
}
