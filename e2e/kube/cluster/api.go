package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// api is the little that starting a cluster needs from the API server. The
// package does without client-go so that it stays quick to compile and test.
type api struct {
	base, token string
	http        http.Client
}

func newAPI(dir string, s state) (*api, error) {
	b, err := os.ReadFile(filepath.Join(dir, "pki/ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, errors.New("pki/ca.crt holds no certificate")
	}
	return &api{base: s.server(), token: s.Tokens["admin"], http: http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}}, nil
}

// statusError is an answer other than 2xx.
type statusError struct {
	code int
	body string
}

func (e *statusError) Error() string { return fmt.Sprintf("HTTP status %d: %s", e.code, e.body) }

// do sends in as JSON, if there is any, and decodes the answer into out.
func (a *api) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+a.token)
	req.Header.Set("Content-Type", "application/json")
	res, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	if err != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return &statusError{res.StatusCode, string(b[:min(len(b), 300)])}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// create posts an object unless it exists already, as after a restart.
func (a *api) create(ctx context.Context, path string, in any) error {
	err := a.do(ctx, http.MethodPost, path, in, nil)
	if e, ok := errors.AsType[*statusError](err); ok && e.code == http.StatusConflict {
		return nil
	}
	return err
}

// ready asks the API server whether it has finished starting.
func (a *api) ready(ctx context.Context) error {
	return a.do(ctx, http.MethodGet, "/readyz", nil, nil)
}

// exists fails until the object at path can be read.
func (a *api) exists(ctx context.Context, path string) error {
	return a.do(ctx, http.MethodGet, path, nil, nil)
}

const nodeLeases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

// nodeReady fails until the node is Ready and its kubelet, simulated or real,
// has renewed its lease after since. The lease matters after a restart: the
// Ready condition is then there already, left from the last run.
func (a *api) nodeReady(ctx context.Context, name string, since time.Time) error {
	var lease struct{ Spec struct{ RenewTime time.Time } }
	if err := a.do(ctx, http.MethodGet, nodeLeases+"/"+name, nil, &lease); err != nil {
		return err
	}
	if lease.Spec.RenewTime.Before(since) {
		return fmt.Errorf("node %s: no sign of life since this start", name)
	}
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Reason, Message string }
		}
	}
	if err := a.do(ctx, http.MethodGet, "/api/v1/nodes/"+name, nil, &node); err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == "Ready" {
			if c.Status == "True" {
				return nil
			}
			return fmt.Errorf("node %s is not Ready: %s: %s", name, c.Reason, c.Message)
		}
	}
	return fmt.Errorf("node %s has not said whether it is Ready", name)
}
