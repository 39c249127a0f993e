// Package charts gets Helm charts from elsewhere: it implements source.Charts.
//
// # Where from
//
//   - an archive by URL: helm.chart is http(s)://…/web-1.2.3.tgz, with ?checksum=sha256:… if it is to be verified, and
//     with …tgz//dir if the chart is in a directory of the archive;
//   - a chart repository: helm.repo is its http(s) URL, where an index.yaml lies, helm.chart a name in it;
//   - an OCI registry: helm.repo or helm.chart is oci://host/path, with :tag or @sha256:… in it, or with helm.version.
//
// helm.version is a version or a range, as for Helm: the highest that matches, prereleases only if the range names one;
// none means the latest stable version. Git addresses are refused.
//
// # What is trusted
//
// A digest that the user, an index or a registry states is verified. Addresses come from users and from indexes, which are
// strangers: credentials go only to the host they are given for, over TLS unless Options.PlainHTTP names the host, and not
// along with a redirect to another one. They are in no error, and neither is the query of a URL, which is often signed.
// Sizes are limited (see package archive); time is the context's, and 5 minutes for one answer.
package charts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/Masterminds/semver/v3"

	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/controller/source/charts/archive"
)

// Options are what getting charts takes. The zero value gets what is public.
type Options struct {
	Credentials []Credential
	CA          []byte   // certificates in PEM, trusted besides the system's
	PlainHTTP   []string // hosts (with port) of OCI registries without TLS; to them credentials are sent without TLS as well
	CacheDir    string   // keeps archives whose digest is known beforehand; files in it may be deleted at any time; empty: none
	Login       string   // ends the error when a host wants credentials: how they are given to this program
}

// Credential is for one host, as it stands in the URL, with the port if there is one there.
type Credential struct {
	Host               string
	Username, Password string
	Token              string // a bearer token; instead of a password
	RefreshToken       string // of a registry: what docker calls identitytoken
}

var (
	_ source.Charts = (*Client)(nil)
	_ source.Files  = (*Client)(nil)
)

// Client gets charts. It remembers the indexes it has read: use one for one pass over the sources, then Close it. Safe for
// concurrent use.
type Client struct {
	o       Options
	http    *transport
	creds   map[string]Credential
	backoff time.Duration // before the second attempt

	mu      sync.Mutex
	indexes map[string][]byte // by URL
	kept    int               // bytes of them
}

// New checks the options.
func New(o Options) (*Client, error) {
	c := &Client{o: o, creds: map[string]Credential{}, indexes: map[string][]byte{}, backoff: 300 * time.Millisecond}
	for _, cr := range o.Credentials {
		host := canonical(cr.Host)
		if host == "" || strings.ContainsAny(host, "/@ ") {
			return nil, fmt.Errorf("credentials: host %q: give it as in the URL, such as charts.example.com or localhost:5000", cr.Host)
		}
		if cr.Token != "" && (cr.Username != "" || cr.Password != "") {
			return nil, fmt.Errorf("credentials for %s: give a token or a username and password, not both", host)
		}
		c.creds[host] = cr
	}
	plain := map[string]bool{}
	for _, h := range o.PlainHTTP {
		plain[canonical(h)] = true
	}
	var err error
	c.http, err = newTransport(o.CA, plain)
	return c, err
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get returns a chart with its dependencies below charts/.
func (c *Client) Get(ctx context.Context, ref source.ChartRef) (source.Chart, error) {
	return c.get(ctx, ref, 0)
}

func (c *Client) get(ctx context.Context, ref source.ChartRef, depth int) (source.Chart, error) {
	ch, err := c.alone(ctx, ref)
	if err != nil {
		return source.Chart{}, fmt.Errorf("get chart %s: %w", printable(ref), err)
	}
	more, err := c.dependencies(ctx, ch.Files, depth)
	if err != nil {
		return source.Chart{}, fmt.Errorf("get chart %s: %w", printable(ref), err)
	}
	maps.Copy(ch.Files, more)
	return ch, nil
}

// alone gets a chart without looking at its dependencies.
func (c *Client) alone(ctx context.Context, ref source.ChartRef) (source.Chart, error) {
	ref = source.ChartRef{Chart: strings.TrimSpace(ref.Chart), Repo: strings.TrimSpace(ref.Repo), Version: strings.TrimSpace(ref.Version)}
	if err := check(ref); err != nil {
		return source.Chart{}, err
	}
	switch {
	case isOCI(ref.Chart):
		return c.fromRegistry(ctx, ref.Chart, ref.Version)
	case isOCI(ref.Repo):
		at := ref.Repo
		if ref.Chart != "" {
			at = strings.TrimSuffix(at, "/") + "/" + strings.Trim(ref.Chart, "/")
		}
		return c.fromRegistry(ctx, at, ref.Version)
	case ref.Repo != "":
		return c.fromRepository(ctx, ref)
	default:
		return c.fromURL(ctx, ref)
	}
}

// check refuses what is no address of a chart, with advice.
func check(ref source.ChartRef) error {
	const instead = "use a chart repository, an OCI registry, the https address of a .tgz, or keep the chart in the bundle's directory"
	for field, s := range map[string]string{"chart": ref.Chart, "repo": ref.Repo} {
		u, err := url.Parse(s)
		if err != nil && strings.Contains(s, "://") { // not the error: it holds the address
			return fmt.Errorf("%s is not a valid address", field)
		}
		if err == nil && u.User != nil {
			return fmt.Errorf("%s: a username or password in an address is refused, it would be shown to everybody who sees the bundle: give credentials for host %s instead", field, u.Host)
		}
		if isGit(s) {
			return fmt.Errorf("%s is the address of a git repository, from which charts are not got: %s", field, instead)
		}
		if scheme, _, ok := strings.Cut(s, "::"); ok && !strings.ContainsAny(scheme, "/.") {
			return fmt.Errorf("%s: %s:: is not supported: %s", field, scheme, instead)
		}
		if err == nil && u.Scheme != "" && !isOCI(s) && !isHTTP(s) {
			return fmt.Errorf("%s: %s:// is not supported: %s", field, u.Scheme, instead)
		}
	}
	switch {
	case ref.Repo == "" && ref.Chart == "":
		return errors.New("neither chart nor repo is given")
	case isAlias(ref.Repo):
		return fmt.Errorf("repo %s is a name in somebody's Helm settings: write the repository's address", ref.Repo)
	case ref.Repo != "" && !isOCI(ref.Repo) && !isHTTP(ref.Repo):
		return errors.New("repo is no address: it begins with https:// or oci://")
	case ref.Repo == "" && !isOCI(ref.Chart) && !isHTTP(ref.Chart):
		return fmt.Errorf("chart is no address, and there is no directory of this name: %s", instead)
	case ref.Repo != "" && (isOCI(ref.Chart) || isHTTP(ref.Chart)):
		return errors.New("chart and repo are both addresses: give repo and the chart's name, or the chart's address alone")
	case isHTTP(ref.Repo) && ref.Chart == "":
		return errors.New("a chart repository holds many charts: chart must name one")
	case isHTTP(ref.Repo) && !archive.ValidName(ref.Chart):
		return fmt.Errorf("chart %q is no name of a chart in a repository", ref.Chart)
	}
	return nil
}

func isAlias(s string) bool { return strings.HasPrefix(s, "@") || strings.HasPrefix(s, "alias:") }

func isOCI(s string) bool  { return hasScheme(s, "oci") }
func isHTTP(s string) bool { return hasScheme(s, "https") || hasScheme(s, "http") }

func hasScheme(s, scheme string) bool {
	return len(s) > len(scheme)+3 && strings.EqualFold(s[:len(scheme)], scheme) && s[len(scheme):len(scheme)+3] == "://"
}

func isGit(s string) bool {
	p, _, _ := strings.Cut(s, "?")
	for _, prefix := range []string{"git::", "git://", "git@", "ssh://", "git+", "github.com/", "gitlab.com/", "bitbucket.org/"} {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return strings.HasSuffix(p, ".git") || strings.Contains(p, ".git//")
}

// printable is a reference without what may be secret in it.
func printable(ref source.ChartRef) string {
	var parts []string
	for _, s := range []string{ref.Repo, ref.Chart, ref.Version} {
		if _, err := url.Parse(s); err != nil && strings.Contains(s, "//") {
			s = "…" // where a password would be in it, nobody knows
		}
		if s != "" {
			parts = append(parts, redact(s))
		}
	}
	return strings.Join(parts, " ")
}

// fromURL gets an archive by its URL.
func (c *Client) fromURL(ctx context.Context, ref source.ChartRef) (source.Chart, error) {
	u, err := url.Parse(ref.Chart)
	if err != nil {
		return source.Chart{}, errors.New("chart is not a valid address")
	}
	want, err := checksum(u)
	if err != nil {
		return source.Chart{}, err
	}
	file, dir, inDir := strings.Cut(u.Path, "//")
	if inDir {
		u.Path, u.RawPath = file, ""
	}
	data, err := c.cached(want, func() ([]byte, error) { return c.fetch(ctx, u, archive.MaxPacked) })
	if err != nil {
		return source.Chart{}, err
	}
	if inDir {
		return chartOf(data, ref.Version, strings.Trim(dir, "/"))
	}
	return chartOf(data, ref.Version, "")
}

// File gets a file by its URL, with ?checksum=sha256:… verified, as an archive is.
func (c *Client) File(ctx context.Context, address string) ([]byte, string, error) {
	if err := check(source.ChartRef{Chart: address}); err != nil {
		return nil, "", fmt.Errorf("get %s: %w", redact(address), err)
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, "", errors.New("not a valid address")
	}
	want, err := checksum(u)
	if err != nil {
		return nil, "", fmt.Errorf("get %s: %w", redact(address), err)
	}
	data, err := c.fetch(ctx, u, source.MaxFile)
	if err == nil {
		err = verify(data, want)
	}
	if err != nil {
		return nil, "", fmt.Errorf("get %s: %w", redact(address), err)
	}
	return data, "sha256:" + sum(data), nil
}

// checksum takes go-getter's parameters out of a URL: the digest it states, and archive, which is clear anyway.
func checksum(u *url.URL) (string, error) {
	q := u.Query()
	if kind := q.Get("archive"); kind != "" {
		if kind != "tgz" && kind != "tar.gz" {
			return "", fmt.Errorf("chart: archive=%s is not supported: a chart is a .tgz", kind)
		}
		q.Del("archive")
		u.RawQuery = q.Encode()
	}
	sum := q.Get("checksum")
	if sum == "" {
		return "", nil
	}
	q.Del("checksum")
	u.RawQuery = q.Encode()
	return parseDigest("checksum", sum)
}

// parseDigest returns the hexadecimal digits of a SHA-256.
func parseDigest(field, s string) (string, error) {
	d := strings.ToLower(strings.TrimPrefix(s, "sha256:"))
	if _, err := hex.DecodeString(d); err != nil || len(d) != 2*sha256.Size {
		return "", fmt.Errorf("%s %.100q is not supported: it is sha256: and 64 hexadecimal digits", field, s)
	}
	return d, nil
}

// verify compares data with a digest in hexadecimal; an empty one is not stated and holds.
func verify(data []byte, want string) error {
	if got := sum(data); want != "" && got != want {
		return fmt.Errorf("wrong digest: it must be sha256:%s and is sha256:%s: the file is damaged, or was replaced after its digest was written down", want, got)
	}
	return nil
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// chartOf unpacks the chart of an archive, or in a directory of it, and compares its version with what is asked for.
func chartOf(data []byte, version, dir string) (source.Chart, error) {
	var ch archive.Chart
	var err error
	if dir == "" {
		ch, err = archive.Unpack(data)
	} else {
		var files map[string][]byte
		if files, err = archive.Files(data); err == nil {
			if ch, err = archive.Sub(files, dir); err != nil {
				err = fmt.Errorf("directory %s of the archive: %w", dir, err)
			}
		}
	}
	if err != nil {
		return source.Chart{}, err
	}
	if version != "" && version != ch.Version {
		ok, err := matches(version, ch.Version)
		if err != nil {
			return source.Chart{}, err
		}
		if !ok {
			return source.Chart{}, fmt.Errorf("the chart has version %s, asked for is %s", ch.Version, version)
		}
	}
	return source.Chart{Name: ch.Name, Version: ch.Version, Digest: "sha256:" + sum(data), Files: ch.Files}, nil
}

func matches(want, version string) (bool, error) {
	con, err := constraint(want)
	if err != nil {
		return false, err
	}
	v, err := semver.NewVersion(version)
	return err == nil && con.Check(v), nil
}

func constraint(want string) (*semver.Constraints, error) {
	if want == "" {
		want = "*"
	}
	con, err := semver.NewConstraint(want)
	if err != nil {
		return nil, fmt.Errorf("version %q is neither a version nor a range such as ^1.2.0 or \">=1.2.0 <2.0.0\"", want)
	}
	return con, nil
}
