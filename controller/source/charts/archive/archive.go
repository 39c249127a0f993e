// Package archive reads chart archives: what `helm package` makes, a gzipped tar with one directory.
//
// Archives come from strangers. Reading one takes bounded time and memory, and what comes out are plain files below one
// directory: links, devices, paths that lead out, files that appear twice and archives that swell are refused.
package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/Masterminds/semver/v3"
	"sigs.k8s.io/yaml"
)

// Limits. A chart becomes a part of a bundle, whose limits are no larger (see package source).
const (
	MaxPacked   = 16 << 20 // bytes of an archive
	MaxUnpacked = 24 << 20 // bytes of all files
	MaxFile     = 8 << 20
	MaxFiles    = 4000
	maxPath     = 1024
	// What the headers of that many files take, and long names.
	maxStream = MaxUnpacked + MaxFiles*4096
)

// Chart is an unpacked chart. Files are by path inside the chart's directory.
type Chart struct {
	Name, Version string
	Files         map[string][]byte
}

// Unpack reads an archive that holds one chart.
func Unpack(data []byte) (Chart, error) {
	files, err := Files(data)
	if err != nil {
		return Chart{}, err
	}
	top := ""
	for name := range files {
		dir, rest, ok := strings.Cut(name, "/")
		if !ok {
			return Chart{}, fmt.Errorf("unpack chart: %s is not in a directory: pack the chart with `helm package`", name)
		}
		if rest == "Chart.yaml" {
			top = dir
		}
	}
	if top == "" {
		return Chart{}, errors.New("unpack chart: there is no Chart.yaml in a directory at its top: this is no chart archive")
	}
	return Sub(files, top)
}

// Sub returns the chart in a directory of files.
func Sub(files map[string][]byte, dir string) (Chart, error) {
	c := Chart{Files: map[string][]byte{}}
	for name, data := range files {
		rel, ok := strings.CutPrefix(name, dir+"/")
		switch {
		case ok:
			c.Files[rel] = data
		case !strings.Contains(dir, "/"):
			other, _, _ := strings.Cut(name, "/")
			return Chart{}, fmt.Errorf("unpack chart: it has the directories %s and %s at its top, a chart has one", dir, other)
		}
	}
	var err error
	c.Name, c.Version, err = Meta(c.Files["Chart.yaml"])
	return c, err
}

// Meta returns name and version that a Chart.yaml says.
func Meta(chartYAML []byte) (name, version string, err error) {
	if chartYAML == nil {
		return "", "", errors.New("no Chart.yaml in it")
	}
	var m struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	if err := yaml.Unmarshal(chartYAML, &m); err != nil {
		return "", "", fmt.Errorf("in Chart.yaml: %s", strings.Join(strings.Fields(err.Error()), " "))
	}
	if !ValidName(m.Name) {
		return "", "", fmt.Errorf("in Chart.yaml: name %q: use letters, digits, '.', '_' and '-'", m.Name)
	}
	if _, err := semver.NewVersion(m.Version); err != nil {
		return "", "", fmt.Errorf("in Chart.yaml: version %q is no semantic version such as 1.2.3", m.Version)
	}
	return m.Name, m.Version, nil
}

// ValidName reports whether a chart's name can be an element of a path.
func ValidName(name string) bool {
	return name != "" && len(name) <= 250 && strings.Trim(name, ".") != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._-", r))
	})
}

// Files returns all files of a gzipped tar by their path in it.
func Files(data []byte) (map[string][]byte, error) {
	files, err := unpack(data)
	if err != nil {
		return nil, fmt.Errorf("unpack chart: %w", err)
	}
	return files, nil
}

func unpack(data []byte) (map[string][]byte, error) {
	if len(data) > MaxPacked {
		return nil, fmt.Errorf("the archive has %d bytes, the limit is %d", len(data), MaxPacked)
	}
	if len(data) < 2 || data[0] != 0x1f || data[1] != 0x8b {
		return nil, errors.New("not a .tgz file (its first bytes are not gzip's)")
	}
	zr, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, damaged(err)
	}
	stream := &limited{r: zr, left: maxStream}
	tr := tar.NewReader(stream)
	files := map[string][]byte{}
	total := 0
	for entries := 0; ; entries++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, damaged(err)
		}
		if entries == 2*MaxFiles {
			return nil, fmt.Errorf("more than %d entries", 2*MaxFiles)
		}
		name, err := clean(h)
		if err != nil {
			return nil, err
		}
		if name == "" {
			continue
		}
		switch _, twice := files[name]; {
		case twice:
			return nil, fmt.Errorf("%s appears twice", name)
		case len(files) == MaxFiles:
			return nil, fmt.Errorf("more than %d files", MaxFiles)
		case h.Size > MaxFile:
			return nil, fmt.Errorf("%s has %d bytes, the limit is %d", name, h.Size, MaxFile)
		}
		if total += int(h.Size); total > MaxUnpacked {
			return nil, fmt.Errorf("its files have more than %d bytes in all", MaxUnpacked)
		}
		// Not made in one piece of h.Size: a header may promise what does not follow.
		content, err := io.ReadAll(tr)
		if err != nil {
			return nil, damaged(err)
		}
		files[name] = content
	}
	// To the end: a cut archive fails here, gzip's checksum stands last.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return nil, damaged(err)
	}
	return files, checkTree(files)
}

// clean returns where an entry belongs, "" for what is no file and does no harm.
func clean(h *tar.Header) (string, error) {
	raw := h.Name
	switch {
	case len(raw) > maxPath:
		return "", fmt.Errorf("a path has %d bytes, the limit is %d", len(raw), maxPath)
	case !utf8.ValidString(raw) || strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", fmt.Errorf("path %q has characters that are not allowed", raw)
	}
	name := path.Clean(strings.ReplaceAll(raw, `\`, "/"))
	if path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") || (len(name) > 1 && name[1] == ':') ||
		slices.Contains(strings.Split(strings.ReplaceAll(raw, `\`, "/"), "/"), "..") {
		return "", fmt.Errorf("path %q leads out of the chart", raw)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if name == "." {
			return "", fmt.Errorf("path %q names no file", raw)
		}
		return name, nil
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return "", nil
	case tar.TypeSymlink, tar.TypeLink:
		return "", fmt.Errorf("%q is a link: a chart holds files only", raw)
	default:
		return "", fmt.Errorf("%q is neither a file nor a directory", raw)
	}
}

// checkTree refuses a path that is a file and a directory.
func checkTree(files map[string][]byte) error {
	for name := range files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := files[dir]; ok {
				return fmt.Errorf("%s is a file and a directory", dir)
			}
		}
	}
	return nil
}

var errSwells = fmt.Errorf("it unpacks to more than %d bytes", maxStream)

func damaged(err error) error {
	if errors.Is(err, errSwells) {
		return errSwells
	}
	return fmt.Errorf("the archive is damaged or incomplete: %w", err)
}

// limited fails where io.LimitReader would end: a limit must not look like the end of the archive.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errSwells
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	return n, err
}
