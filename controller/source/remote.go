package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// Files gets files that are not in the directory: what kustomizations name by address. A Charts that has it fetches them too.
type Files interface {
	// File returns a file and its digest, such as sha256:…. Errors name the address, without credentials.
	File(ctx context.Context, address string) (data []byte, digest string, err error)
}

// FilesAnnotation of a Bundle says where its files below .remote/ come from: a JSON list, in the order of names.
const FilesAnnotation = "shoal.dev/files"

type fileOrigin struct {
	File    string `json:"file"`
	Address string `json:"address"`
	Digest  string `json:"digest"`
}

// kustomizationLists are the fields of a kustomization whose entries are files or directories.
var kustomizationLists = []string{"resources", "bases", "components", "crds", "generators", "transformers", "validators", "configurations"}

// remote fetches what the kustomization in a directory, and those that it uses, name by address. The files become part of the bundle,
// below .remote/, and the entries name them there. at is the field of the options that uses the kustomization.
func (b *bundle) remote(ctx context.Context, at, dir string) error {
	if b.kustomized[dir] {
		return ctx.Err()
	}
	b.kustomized[dir] = true
	file := ""
	for _, n := range []string{"kustomization.yaml", "kustomization.yml", "Kustomization"} {
		if _, ok := b.files[path.Join(dir, n)]; ok && file == "" {
			file = path.Join(dir, n)
		}
	}
	var doc yamlv3.Node
	if file == "" || yamlv3.Unmarshal(b.files[file], &doc) != nil || len(doc.Content) == 0 || doc.Content[0].Kind != yamlv3.MappingNode {
		return nil // kustomize says what is wrong with it
	}
	root, changed := doc.Content[0], false
	for i := 0; i+1 < len(root.Content); i += 2 {
		list := root.Content[i+1]
		isList := slices.ContainsFunc(kustomizationLists, func(l string) bool { return strings.EqualFold(l, root.Content[i].Value) })
		if !isList || list.Kind != yamlv3.SequenceNode {
			continue
		}
		for _, e := range list.Content {
			switch {
			case e.Kind != yamlv3.ScalarNode || strings.Contains(e.Value, "\n") || b.late(e.Value):
			case isHTTP(e.Value):
				name, err := b.remoteFile(ctx, e.Value)
				if err != nil {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					b.doc.report(at, Problem{File: path.Join(b.dir, file), Line: e.Line, Message: err.Error(), err: err})
					continue
				}
				up := strings.Repeat("../", strings.Count(path.Clean(dir)+"/", "/"))
				if dir == "." {
					up = ""
				}
				e.Value, e.Style, changed = up+name, 0, true
			default:
				if err := b.remote(ctx, at, path.Join(dir, e.Value)); err != nil {
					return err
				}
			}
		}
	}
	if !changed {
		return nil
	}
	data, err := yamlv3.Marshal(&doc)
	if err != nil {
		return err
	}
	b.files[file] = data
	return nil
}

func isHTTP(s string) bool {
	return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")
}

// remoteFile fetches a file, once, and returns its name in the bundle.
func (b *bundle) remoteFile(ctx context.Context, address string) (string, error) {
	const instead = "name the address of the raw file, or copy it into the bundle"
	i := slices.IndexFunc(b.fetched, func(f fileOrigin) bool { return f.Address == address })
	if i >= 0 {
		return b.fetched[i].File, nil
	}
	u, err := url.Parse(address)
	switch {
	case err != nil:
		return "", errors.New("not a valid address")
	case u.User != nil:
		return "", fmt.Errorf("%s: a username or password in an address is refused, it would be shown to everybody who sees the bundle", redact(address))
	case strings.Contains(u.Path, "//"), strings.HasSuffix(u.Path, ".git"), u.Query().Has("ref"):
		return "", fmt.Errorf("%s is a git repository, from which nothing is got: %s", redact(address), instead)
	}
	files, ok := b.o.Charts.(Files)
	if !ok {
		return "", fmt.Errorf("%s is not in the directory, and nothing is fetched here", redact(address))
	}
	data, digest, err := files.File(ctx, address)
	if err != nil {
		return "", err
	}
	var any map[string]any
	first, _, _ := strings.Cut(string(data), "\n---")
	if strings.HasPrefix(strings.TrimSpace(first), "<") || yaml.Unmarshal([]byte(first), &any) != nil {
		return "", fmt.Errorf("%s is no YAML file but a page, or a repository: %s", redact(address), instead)
	}
	base := cleanName(strings.TrimSuffix(path.Base(u.Path), path.Ext(u.Path)))
	name := fmt.Sprintf(".remote/%s-%s.yaml", strings.TrimPrefix(digest, "sha256:")[:8], base)
	b.files[name] = data
	b.fetched = append(b.fetched, fileOrigin{File: name, Address: address, Digest: digest})
	return name, nil
}

// annotateFiles says where files come from.
func (b *bundle) annotateFiles() error {
	if len(b.fetched) == 0 {
		return nil
	}
	slices.SortFunc(b.fetched, func(a, c fileOrigin) int { return strings.Compare(a.File, c.File) })
	for i := range b.fetched {
		b.fetched[i].Address = redact(b.fetched[i].Address)
	}
	js, err := json.Marshal(b.fetched)
	if err != nil {
		return err
	}
	if b.out.Annotations == nil {
		b.out.Annotations = map[string]string{}
	}
	b.out.Annotations[FilesAnnotation] = string(js)
	return nil
}
