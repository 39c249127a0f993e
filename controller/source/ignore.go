package source

import (
	"bytes"
	"fmt"
	"path"
	"strings"
)

// ignoreFile names files that are no part of the bundle, for its directory and those below.
const ignoreFile = ".fleetignore"

const maxPatterns = 1000

// pattern is a line of .fleetignore. It is matched against names, not against paths.
type pattern struct {
	name string // as path.Match has it
	dir  bool   // name is that of a directory, and no pattern
}

func (p pattern) matches(name string, dir bool) bool {
	if p.dir {
		return dir && p.name == name
	}
	ok, _ := path.Match(p.name, name) // parseIgnore has tried it
	return ok
}

// parseIgnore reads .fleetignore. What git would understand and this format does not is refused: read as a plain name it
// would match nothing, and deploy what was to be left out.
func parseIgnore(file string, data []byte) ([]pattern, Problems) {
	var out []pattern
	var ps Problems
	if len(data) > maxOptionsFile {
		return nil, Problems{{File: file, Message: fmt.Sprintf("file has %d bytes, the limit is %d", len(data), maxOptionsFile)}}
	}
	for i, line := range strings.Split(string(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))), "\n") {
		line = trimRight(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		p, wrong := parsePattern(line)
		if len(out) == maxPatterns {
			wrong = fmt.Sprintf("more than %d patterns", maxPatterns)
		}
		if wrong != "" {
			if ps = append(ps, Problem{File: file, Line: i + 1, Message: wrong}); len(ps) == maxProblems {
				break
			}
			continue
		}
		out = append(out, p)
	}
	return out, ps
}

func parsePattern(line string) (p pattern, wrong string) {
	dir, all := strings.CutSuffix(line, "/*")
	switch {
	case strings.HasPrefix(line, "!"):
		return p, fmt.Sprintf(`%q: "!" does not bring files back here: name what is to be left out`, line)
	case strings.Contains(line, "**"):
		return p, fmt.Sprintf(`%q: there is no "**": a pattern holds in all directories below, write the name alone`, line)
	case all && dir != "" && !strings.ContainsAny(dir, `*?[\/`):
		return pattern{name: dir, dir: true}, ""
	case strings.HasSuffix(line, "/") && !strings.ContainsAny(line[:len(line)-1], `*?[\/`):
		return pattern{name: line[:len(line)-1], dir: true}, "" // as git reads it; in Fleet it matches nothing
	case strings.Contains(line, "/"):
		return p, fmt.Sprintf(`%q: patterns are matched against names, not paths: write the name alone, NAME/* for a directory with all that is in it, or a %s in that directory`, line, ignoreFile)
	}
	if _, err := path.Match(line, ""); err != nil {
		return p, fmt.Sprintf("%q is no pattern: a bracket is not closed, or a backslash ends it", line)
	}
	return pattern{name: line}, ""
}

// trimRight drops white space at the end, unless a backslash keeps it.
func trimRight(s string) string {
	t := strings.TrimRight(s, " \t\r")
	if strings.HasSuffix(t, `\`) && len(t) < len(s) && s[len(t)] != '\r' {
		return s[:len(t)+1]
	}
	return t
}
