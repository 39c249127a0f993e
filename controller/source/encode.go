package source

import (
	"fmt"
	"path"
	"slices"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// encode turns files into resources, sorted by name: text stays text while the bundle is small. size is that of the rest of the
// bundle.
func encode(files map[string][]byte, used map[string]bool, size int) ([]v1alpha1.BundleResource, error) {
	var names []string
	var text int
	for n, data := range files {
		if used[n] {
			continue
		}
		names = append(names, n)
		text += len(data)
	}
	if !slices.ContainsFunc(names, deployable) {
		return nil, empty()
	}
	if len(names) > MaxFiles {
		return nil, Problem{Message: fmt.Sprintf("more than %d files with those of charts: split the directory into several bundles", MaxFiles)}
	}
	slices.Sort(names)
	var out []v1alpha1.BundleResource
	for _, n := range names {
		if len(n) > maxPath {
			return nil, Problem{File: n[:60] + "…", Message: fmt.Sprintf("path has %d characters, the limit is %d", len(n), maxPath)}
		}
		res := v1alpha1.NewResource(n, files[n])
		if res.Encoding == v1alpha1.EncodingText && text > maxText && len(files[n]) > largeFile {
			if z := v1alpha1.NewCompressedResource(n, files[n]); len(z.Content) < len(res.Content) {
				res = z
			}
		}
		out = append(out, res)
		size += len(res.Name) + len(res.Content) + 40
	}
	if size > MaxEncoded {
		big := slices.MaxFunc(out, func(a, b v1alpha1.BundleResource) int { return len(a.Content) - len(b.Content) })
		return nil, Problem{Message: fmt.Sprintf("bundle has %d bytes after compression, the limit is %d (Kubernetes stores objects up to 1.5 MB; largest file: %s, %d bytes): split the directory into several bundles, or take large files out of it",
			size, MaxEncoded, big.Name, len(big.Content))}
	}
	return out, nil
}

const maxPath = 512 // as the API has it

// deployable is what a bundle has at least one of; anything else only accompanies it.
func deployable(name string) bool {
	ext := path.Ext(name)
	return ext == ".yaml" || ext == ".yml" || ext == ".json" || path.Base(name) == "Kustomization"
}
