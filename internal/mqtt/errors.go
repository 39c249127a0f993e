package mqtt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/eclipse/paho.golang/paho"
)

// What can go wrong with a link, for errors.Is. The texts say what to do, since OnDown usually ends in a log a person reads.
var (
	// ErrOffline is returned at once by Publish and Request while there is no connection.
	ErrOffline = errors.New("not connected to the broker")
	// ErrConnectionRefused: the machine answered, nothing listens on the port.
	ErrConnectionRefused = errors.New("connection refused: check that the hub is running and that host and port of the MQTT URL are right")
	// ErrUnreachable: no answer, no route, or the name does not resolve.
	ErrUnreachable = errors.New("cannot reach the broker: check the network, the host name of the MQTT URL and firewalls on the way")
	// ErrUnknownCA: the broker's certificate is signed by nobody we trust.
	ErrUnknownCA = errors.New("the broker's certificate is not signed by a CA we trust: check that the CA belongs to this hub (was the hub reinstalled?) and that no proxy intercepts TLS")
	// ErrWrongName: the broker's certificate is for another name.
	ErrWrongName = errors.New("the broker's certificate is for another host name: use a name of the certificate in the MQTT URL")
	// ErrCertificateTime: the broker's certificate is expired or not valid yet.
	ErrCertificateTime = errors.New("the broker's certificate is expired or not valid yet: check the clock of this machine, then the certificate")
	// ErrNotTLS: the peer does not speak TLS.
	ErrNotTLS = errors.New("the peer does not speak TLS: check the port of the MQTT URL")
	// ErrNotAuthorized: the broker refused who we are, or what we asked for.
	ErrNotAuthorized = errors.New("not authorized by the broker: check that this cluster is enrolled and that its credential is not revoked")
	// ErrTakenOver: another connection with our client id took our place.
	ErrTakenOver = errors.New("another connection uses our client id: check that no second agent runs with the same credential")
	// ErrBusy: the broker has no room or is shutting down; it is worth trying again.
	ErrBusy = errors.New("the broker is busy or shutting down")
	// ErrQuota: the broker refused a message for its size, rate or a limit.
	ErrQuota = errors.New("refused by a limit of the broker")
	// ErrTooLarge: a message is larger than the limit, in either direction.
	ErrTooLarge = errors.New("message larger than the limit")
	// ErrNotMQTT: what answers is no MQTT 5 broker.
	ErrNotMQTT = errors.New("the peer is not an MQTT 5 broker: check the port of the MQTT URL")
	// ErrTimeout: the broker did not answer in time.
	ErrTimeout = errors.New("no answer from the broker in time")
	// ErrLost: the connection broke.
	ErrLost = errors.New("connection lost")
	// ErrSlowHandler: a handler did not keep up and the link was dropped to bound memory.
	ErrSlowHandler = errors.New("handler does not keep up with incoming messages")
	// ErrInvalidTopic: a topic or filter is against the rules of MQTT.
	ErrInvalidTopic = errors.New("invalid topic")
	// ErrClosed: the client has been stopped.
	ErrClosed = errors.New("client is stopped")
)

// ReasonError is the broker's answer to a CONNECT, PUBLISH or SUBSCRIBE, or its DISCONNECT. It unwraps to the error
// above that fits.
type ReasonError struct {
	Op     string // connect, publish, subscribe or disconnect
	Code   byte   // MQTT 5 §2.4
	Reason string // the broker's own words, if any
}

func (e *ReasonError) Error() string {
	s := fmt.Sprintf("broker answered %s with reason code 0x%02x", e.Op, e.Code)
	if e.Reason != "" {
		s += fmt.Sprintf(" (%s)", e.Reason)
	}
	if k := e.Unwrap(); k != nil {
		s += ": " + k.Error()
	}
	return s
}

func (e *ReasonError) Unwrap() error {
	switch e.Code {
	case 0x86, 0x87, 0x8a, 0x8c, 0x85, 0x98:
		return ErrNotAuthorized
	case 0x8e:
		return ErrTakenOver
	case 0x88, 0x89, 0x8b, 0x9c, 0x9d:
		return ErrBusy
	case 0x93, 0x96, 0x97, 0x9f:
		return ErrQuota
	case 0x95:
		return ErrTooLarge
	case 0x84:
		return ErrNotMQTT
	case 0x8d:
		return ErrTimeout
	case 0x8f, 0x90:
		return ErrInvalidTopic
	}
	return nil
}

// explain wraps an error of the network, TLS or paho so that errors.Is tells its kind and its text what to do.
func explain(err error) error {
	var kind error
	var (
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		unknown  x509.UnknownAuthorityError
		record   tls.RecordHeaderError
		dns      *net.DNSError
		op       *net.OpError
	)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &unknown):
		kind = ErrUnknownCA
	case errors.As(err, &hostname):
		kind = ErrWrongName
	case errors.As(err, &invalid):
		kind = ErrUnknownCA
		if invalid.Reason == x509.Expired {
			kind = ErrCertificateTime
		}
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert: the broker refused our certificate
		kind = ErrNotAuthorized
	case errors.As(err, &record):
		kind = ErrNotTLS
	case errors.Is(err, syscall.ECONNREFUSED):
		kind = ErrConnectionRefused
	case errors.As(err, &dns), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		kind = ErrUnreachable
	case errors.As(err, &op) && op.Op == "dial":
		kind = ErrUnreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		kind = ErrTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, paho.ErrConnectionLost):
		kind = ErrLost
	}
	if kind == nil || errors.Is(err, kind) {
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}
