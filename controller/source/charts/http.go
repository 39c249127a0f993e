package charts

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"time"

	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const (
	attempts      = 3
	answerTimeout = 5 * time.Minute // for one answer to its last byte
	maxRedirects  = 10
)

// transport is how everything here talks HTTP.
type transport struct {
	http.Client
	plain map[string]bool
}

func newTransport(ca []byte, plain map[string]bool) (*transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = time.Minute
	t.IdleConnTimeout = 20 * time.Second
	t.MaxResponseHeaderBytes = 256 << 10
	t.DisableCompression = true // some servers call a .tgz gzip-encoded, and it would arrive unpacked
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if len(ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(ca) {
			return nil, errors.New("CA: no certificate in PEM in it")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	tr := &transport{plain: plain}
	tr.Transport = sender{t, tr}
	tr.CheckRedirect = checkRedirect
	return tr, nil
}

// sender refuses to send credentials where others could read them: the last point that every request passes.
type sender struct {
	*http.Transport
	t *transport
}

func (s sender) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && req.Header.Get("Authorization") != "" && !s.t.plain[canonical(req.URL.Host)] {
		return nil, plainError{req.URL.Host}
	}
	return s.Transport.RoundTrip(req)
}

type plainError struct{ host string }

func (e plainError) Error() string {
	return fmt.Sprintf("credentials for %s would go over the network without TLS: use https, or allow plain HTTP for this host", e.host)
}

// checkRedirect: net/http keeps credentials for subdomains, other ports, and on the way back; here leaving the origin once
// is enough to lose them.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	first := via[0].URL
	if first.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("it redirects to %s://%s, which has no TLS: use an address that stays with https", req.URL.Scheme, req.URL.Host)
	}
	for _, r := range append(via[1:len(via):len(via)], req) {
		if r.URL.Scheme != first.Scheme || canonical(r.URL.Host) != canonical(first.Host) {
			req.Header.Del("Authorization")
		}
	}
	return nil
}

// canonical is a host as credentials are kept by: without a default port, and Docker Hub by one of its names.
func canonical(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, ":443"))
	switch host {
	case "docker.io", "index.docker.io", "https://index.docker.io/v1/", "https://index.docker.io/v2/":
		return "registry-1.docker.io"
	}
	for _, scheme := range []string{"https://", "http://"} {
		host = strings.TrimPrefix(host, scheme)
	}
	return strings.TrimSuffix(host, "/")
}

// registryCredential is what the OCI client asks.
func (c *Client) registryCredential(_ context.Context, host string) (auth.Credential, error) {
	cr := c.creds[canonical(host)]
	return auth.Credential{Username: cr.Username, Password: cr.Password, AccessToken: cr.Token, RefreshToken: cr.RefreshToken}, nil
}

// fetch gets a file with at most limit bytes.
func (c *Client) fetch(ctx context.Context, u *url.URL, limit int64) ([]byte, error) {
	var data []byte
	err := c.retry(ctx, u.Host, func(ctx context.Context) (err error) {
		data, err = c.fetchOnce(ctx, u, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", redact(u.String()), err)
	}
	return data, nil
}

func (c *Client) fetchOnce(ctx context.Context, u *url.URL, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "shoal")
	if strings.HasSuffix(u.Path, ".yaml") { // an index has megabytes of text
		req.Header.Set("Accept-Encoding", "gzip")
	}
	switch cr := c.creds[canonical(u.Host)]; {
	case cr.Token != "":
		req.Header.Set("Authorization", "Bearer "+cr.Token)
	case cr.Username != "" || cr.Password != "":
		req.SetBasicAuth(cr.Username, cr.Password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, statusError{resp.StatusCode, resp.Request.URL.Host}
	}
	var body io.Reader = resp.Body
	if req.Header.Get("Accept-Encoding") != "" && resp.Header.Get("Content-Encoding") == "gzip" {
		if body, err = gzip.NewReader(resp.Body); err != nil {
			return nil, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it has more than %d bytes, the limit", limit)
	}
	return data, nil
}

type statusError struct {
	code int
	host string // that answered; after a redirect not the one that was asked
}

func (e statusError) Error() string {
	return fmt.Sprintf("%s answers %d %s", e.host, e.code, http.StatusText(e.code))
}

// retry does something with a host up to three times, while the failure may pass, and explains the last failure.
func (c *Client) retry(ctx context.Context, host string, do func(context.Context) error) error {
	wait := c.backoff
	for n := 1; ; n++ {
		err := within(ctx, do)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("ask %s: %w", host, context.Cause(ctx))
		case n == attempts || !passing(err):
			return c.explain(host, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return c.explain(host, err)
		}
		wait *= 3
	}
}

func within(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return do(ctx)
}

// passing reports whether a failure may be gone at the next attempt.
func passing(err error) bool {
	if code := status(err); code != 0 {
		return code >= 500 || code == http.StatusTooManyRequests || code == http.StatusRequestTimeout
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op != "remote error" || // the other side refuses TLS
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
}

func status(err error) int {
	var s statusError
	if errors.As(err, &s) {
		return s.code
	}
	var r *errcode.ErrorResponse
	if errors.As(err, &r) {
		return r.StatusCode
	}
	return 0
}

// explain says what happened and what to do. The text of the libraries is redacted: it holds whole addresses.
func (c *Client) explain(host string, err error) error {
	var s statusError
	if errors.As(err, &s) && canonical(s.host) != canonical(host) {
		return fmt.Errorf("%s redirects, and %w", host, s)
	}
	code := status(err)
	switch {
	case code == http.StatusUnauthorized || code == http.StatusForbidden || errors.Is(err, auth.ErrBasicCredentialNotFound):
		return c.denied(host, code)
	case code == http.StatusNotFound || errors.Is(err, errdef.ErrNotFound):
		return notFoundError{host}
	case code != 0:
		return fmt.Errorf("%s answers %d %s: try again later", host, code, http.StatusText(code))
	}
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		op        *net.OpError
	)
	switch {
	case errors.As(err, &dns):
		return fmt.Errorf("%s is unreachable: no address is known for this name", host)
	case errors.As(err, &authority):
		return fmt.Errorf("%s shows a certificate of an authority that is not trusted here: give the certificate of its CA", host)
	case errors.As(err, &name):
		return fmt.Errorf("%s shows a certificate that is not for this name", host)
	case errors.As(err, &invalid):
		return fmt.Errorf("%s shows an invalid certificate: %s", host, redact(invalid.Error()))
	case errors.As(err, &record) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%s does not speak TLS: write http:// for a repository, or allow plain HTTP for this registry", host)
	case errors.Is(err, content.ErrMismatchedDigest):
		return fmt.Errorf("wrong digest: what %s sends is not what its digest says: it is damaged, or something on the way changes it", host)
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return fmt.Errorf("the answer of %s is truncated: the connection ended before its last byte", host)
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("%s is unreachable: %s", host, redact(op.Err.Error()))
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s did not answer in %s", host, answerTimeout)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("ask %s: %s", host, redact(err.Error()))
}

type notFoundError struct{ host string }

func (e notFoundError) Error() string { return "not found: " + e.host + " answers 404" }

func (c *Client) denied(host string, code int) error {
	what := "wants credentials, and none are given for it"
	if _, ok := c.creds[canonical(host)]; ok {
		what = "refuses the credentials given for it"
	}
	if code != 0 {
		what += fmt.Sprintf(" (%d)", code)
	}
	how := c.o.Login
	if how == "" {
		how = "give a username and password or a token for this host"
	}
	return fmt.Errorf("%s %s: %s", host, what, how)
}

var (
	queries = regexp.MustCompile(`[?#][^\s"]*`)
	users   = regexp.MustCompile(`://[^/\s"@]*@`)
	breaks  = regexp.MustCompile(`[\x00-\x20\x7f]+`)
)

// redact takes from a text what may be secret in the addresses in it, and puts it on one line.
func redact(s string) string {
	return breaks.ReplaceAllString(queries.ReplaceAllString(users.ReplaceAllString(s, "://"), ""), " ")
}

// DockerCredentials reads a docker config.json. Entries whose secret is with a credential helper are left out: helpers are
// programs, and none is run here.
func DockerCredentials(config []byte) ([]Credential, error) {
	var file struct {
		Auths map[string]struct {
			Auth, Username, Password, IdentityToken, RegistryToken string
		}
	}
	if err := json.Unmarshal(config, &file); err != nil {
		return nil, errors.New("docker config.json: not valid JSON, or not of its form") // the reason could quote it
	}
	var out []Credential
	for host, a := range file.Auths {
		c := Credential{Host: canonical(host), Username: a.Username, Password: a.Password, Token: a.RegistryToken, RefreshToken: a.IdentityToken}
		if a.Auth != "" {
			b, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("docker config.json: auth of %s is not base64 of user:password", host)
			}
			c.Username, c.Password = user, password
		}
		if c.Token != "" {
			c.Username, c.Password = "", ""
		}
		if c.Password != "" || c.Token != "" || c.RefreshToken != "" {
			out = append(out, c)
		}
	}
	return out, nil
}
