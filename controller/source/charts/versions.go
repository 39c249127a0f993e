package charts

import (
	"fmt"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"
)

// pick returns which of the versions Helm would take: the one that is written exactly so, else the highest in the range.
func pick(versions []string, want string) (string, error) {
	con, err := constraint(want)
	if err != nil {
		return "", err
	}
	if want != "" && slices.Contains(versions, want) {
		return want, nil
	}
	known := parsed(versions)
	for _, v := range known {
		if con.Check(v) {
			return v.Original(), nil
		}
	}
	switch {
	case len(known) == 0:
		return "", fmt.Errorf("it has no version that could be read")
	case want == "":
		return "", fmt.Errorf("it has only prereleases: give a version, the newest are %s", newest(known))
	default:
		return "", fmt.Errorf("no version matches %s: the newest are %s", want, newest(known))
	}
}

// parsed returns what is a version, highest first.
func parsed(versions []string) []*semver.Version {
	var out []*semver.Version
	for _, s := range versions {
		if v, err := semver.NewVersion(s); err == nil {
			out = append(out, v)
		}
	}
	// Equal ones (by build metadata) have an order of their own, so that the answer is no chance.
	slices.SortFunc(out, func(a, b *semver.Version) int {
		if n := b.Compare(a); n != 0 {
			return n
		}
		return strings.Compare(b.Original(), a.Original())
	})
	return out
}

func newest(known []*semver.Version) string {
	var names []string
	for _, v := range known[:min(5, len(known))] {
		names = append(names, v.Original())
	}
	return strings.Join(names, ", ")
}
