package bundlefmt

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
)

// Ticket is what a site needs to enrol: where the hub is, how to know it, and a token that lets it in. It is
// handed over as one string.
type Ticket struct {
	URL       string            `json:"url"` // of the broker
	CA        string            `json:"ca"`  // PEM: the certificate authority of the broker's certificate
	Root      ed25519.PublicKey `json:"root"`
	Workspace string            `json:"workspace"`
	Token     string            `json:"token"`  // name of the ClusterRegistrationToken
	Secret    string            `json:"secret"` // proves possession; the hub holds only its hash
}

const (
	ticketPrefix = "shoal1."
	maxTicket    = 64 << 10 // bytes; a certificate authority is a few hundred
)

// String is the form that people copy.
func (t Ticket) String() string {
	b, err := json.Marshal(t)
	if err != nil {
		return "" // strings and bytes always encode
	}
	return ticketPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseTicket reads the form that String writes; white space around it is ignored. Errors never repeat the ticket.
func ParseTicket(s string) (Ticket, error) {
	var t Ticket
	if err := atMost("enrolment token", int64(len(s)), maxTicket); err != nil {
		return t, err
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), ticketPrefix)
	if !ok {
		return Ticket{}, fmt.Errorf("enrolment token: %w: it starts with %q; make one with: shoal token create", ErrMalformed, ticketPrefix)
	}
	b, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil || json.Unmarshal(b, &t) != nil {
		return Ticket{}, fmt.Errorf("enrolment token: %w: it is damaged or cut short; copy it whole", ErrMalformed)
	}
	if t.URL == "" || !ValidName(t.Token) || t.Secret == "" || len(t.Root) != ed25519.PublicKeySize || !ValidName(t.Workspace) {
		return Ticket{}, fmt.Errorf("enrolment token: %w: it lacks a field, or a name in it is no DNS label", ErrMalformed)
	}
	return t, nil
}

// EnrollRequest asks for an identity. The private key never leaves the site.
type EnrollRequest struct {
	Cluster string `json:"cluster"`
	CSR     []byte `json:"csr"` // PKCS #10, DER
	Agent   string `json:"agent"`
}

// EnrollResponse carries the identity, or why there is none.
type EnrollResponse struct {
	Error       string `json:"error,omitempty"`
	Final       bool   `json:"final,omitempty"` // trying again will not help
	Workspace   string `json:"workspace,omitempty"`
	Cluster     string `json:"cluster,omitempty"`
	Certificate []byte `json:"certificate,omitempty"` // X.509, DER
	Trust       []byte `json:"trust,omitempty"`       // the trust document as it stands
}

// ParseEnrollRequest reads a request from somebody who holds no more than a token.
func ParseEnrollRequest(b []byte, l Limits) (*EnrollRequest, error) {
	var r EnrollRequest
	if err := parseJSON("enrolment request", b, &r, l); err != nil {
		return nil, err
	}
	if !ValidName(r.Cluster) {
		return nil, fmt.Errorf("enrolment request: %w: cluster name %q is not a DNS label (a-z, 0-9, dashes; at most 63)", ErrMalformed, r.Cluster)
	}
	clip(&r.Agent, maxVersion)
	return &r, nil
}

// ParseEnrollResponse reads the hub's answer. The trust document in it is not verified here; see [OpenTrust].
func ParseEnrollResponse(b []byte, l Limits) (*EnrollResponse, error) {
	var r EnrollResponse
	if err := parseJSON("enrolment response", b, &r, l); err != nil {
		return nil, err
	}
	clip(&r.Error, MaxMessage)
	return &r, nil
}
