// Package deploy embeds what an installation needs from this directory, so that the hub's binary can install it.
package deploy

import (
	"embed"
	"io/fs"
)

//go:embed crds/*.yaml
var crds embed.FS

// CRDs returns the CustomResourceDefinitions of group shoal.dev, one YAML document each, in the order of their names.
func CRDs() [][]byte {
	names, err := fs.Glob(crds, "crds/*.yaml")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	docs := make([][]byte, 0, len(names))
	for _, n := range names {
		b, err := crds.ReadFile(n)
		if err != nil {
			panic(err) // an embedded file cannot fail to be read
		}
		docs = append(docs, b)
	}
	return docs
}
