package bundlefmt

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

// KeyID names a public key: the first 8 bytes of its SHA-256.
type KeyID [8]byte

// KeyIDOf computes the id of a public key.
func KeyIDOf(pub ed25519.PublicKey) KeyID {
	h := sha256.Sum256(pub)
	return KeyID(h[:8])
}

// String is the hexadecimal form.
func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

// Signer signs messages. The zero value is unusable; make one with NewSigner.
type Signer struct {
	id  KeyID
	key ed25519.PrivateKey
}

// NewSigner wraps a private key.
func NewSigner(key ed25519.PrivateKey) Signer {
	return Signer{id: KeyIDOf(key.Public().(ed25519.PublicKey)), key: key}
}

// Public is the key that verifies what s signs.
func (s Signer) Public() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Trust is the set of keys whose signatures are accepted. It is immutable.
type Trust struct{ keys map[KeyID]ed25519.PublicKey }

// NewTrust makes a set of keys. Keys of the wrong length are left out: they could verify nothing.
func NewTrust(keys ...ed25519.PublicKey) Trust {
	t := Trust{keys: make(map[KeyID]ed25519.PublicKey, len(keys))}
	for _, k := range keys {
		if len(k) == ed25519.PublicKeySize {
			t.keys[KeyIDOf(k)] = bytes.Clone(k)
		}
	}
	return t
}

// Has reports whether the key with this id is trusted.
func (t Trust) Has(id KeyID) bool { _, ok := t.keys[id]; return ok }

var encMode = func() cbor.EncMode {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty // an empty list has one encoding: null is refused
	m, err := o.EncMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

var decMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   8,
		MaxArrayElements:  16384,
		MaxMapPairs:       64,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8RejectInvalid,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

// looseMode reads no more than a format version out of what may be written by a newer version.
var looseMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{MaxNestedLevels: 16}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

// sign wraps the CBOR encoding of v.
func sign(s Signer, contentType string, v any) ([]byte, error) {
	payload, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", contentType, err)
	}
	signer, err := cose.NewSigner(cose.AlgorithmEdDSA, s.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", contentType, err)
	}
	m := cose.NewSign1Message()
	m.Headers.Protected = protected(s.id, contentType)
	m.Payload = payload
	if err := m.Sign(nil, nil, signer); err != nil { // Ed25519 takes no randomness: the same value signs to the same bytes
		return nil, fmt.Errorf("sign %s: %w", contentType, err)
	}
	return m.MarshalCBOR()
}

func protected(id KeyID, contentType string) cose.ProtectedHeader {
	return cose.ProtectedHeader{
		cose.HeaderLabelAlgorithm:   cose.AlgorithmEdDSA,
		cose.HeaderLabelContentType: contentType,
		cose.HeaderLabelKeyID:       id[:],
	}
}

// verify checks msg and decodes its payload to v, in this order: size, structure, key, signature, format version,
// fields, canonical form. Nothing of the payload is looked at before the signature holds.
func verify(t Trust, contentType string, msg []byte, v any) error {
	m, id, err := envelope(msg)
	if err != nil {
		return err
	}
	key, ok := t.keys[id]
	if !ok {
		return fmt.Errorf("%w: key %s is unknown here", ErrUntrusted, id)
	}
	if err := checkEnvelope(m, id, contentType, msg); err != nil {
		return err
	}
	verifier, err := cose.NewVerifier(cose.AlgorithmEdDSA, key)
	if err != nil {
		return fmt.Errorf("verify %s: %w", contentType, err)
	}
	if err := m.Verify(nil, verifier); err != nil {
		return fmt.Errorf("%w: signature of key %s does not hold", ErrUntrusted, id)
	}
	return decode(m.Payload, v, newestOf(contentType))
}

// envelope takes a message apart as far as the key that it claims to be signed with.
func envelope(msg []byte) (*cose.Sign1Message, KeyID, error) {
	if len(msg) == 0 {
		return nil, KeyID{}, ErrEmpty
	}
	var m cose.Sign1Message
	if err := m.UnmarshalCBOR(msg); err != nil {
		return nil, KeyID{}, fmt.Errorf("%w: not a COSE_Sign1 message", ErrMalformed)
	}
	id, ok := m.Headers.Protected[cose.HeaderLabelKeyID].([]byte)
	if !ok || len(id) != len(KeyID{}) {
		return nil, KeyID{}, fmt.Errorf("%w: no key id", ErrUntrusted)
	}
	return &m, KeyID(id), nil
}

// checkEnvelope: the message must be exactly what sign would have written around this payload and signature: no other
// algorithm or content type, no unprotected header, no second encoding.
func checkEnvelope(m *cose.Sign1Message, id KeyID, contentType string, msg []byte) error {
	want := cose.Sign1Message{Headers: cose.Headers{Protected: protected(id, contentType)}, Payload: m.Payload, Signature: m.Signature}
	if b, err := want.MarshalCBOR(); err != nil || !bytes.Equal(b, msg) {
		return fmt.Errorf("%w: not a %s in canonical form", ErrMalformed, contentType)
	}
	return nil
}

// decode reads a canonical payload. The version stands under key 1 (or first in an array) in every payload, so that a
// newer message is told apart from a broken one. newest is the last version that changed this kind of payload.
func decode(payload []byte, v any, newest uint64) error {
	if err := decMode.Unmarshal(payload, v); err != nil {
		var unknown *cbor.UnknownFieldError
		if ver, ok := payloadVersion(payload); ok && ver > newest {
			return fmt.Errorf("%w (format %d, this side knows %d)", ErrVersion, ver, newest)
		}
		if errors.As(err, &unknown) {
			return fmt.Errorf("%w: unknown field", ErrMalformed)
		}
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if ver, ok := payloadVersion(payload); !ok || ver == 0 {
		return fmt.Errorf("%w: no format version", ErrMalformed)
	} else if ver > newest {
		return fmt.Errorf("%w (format %d, this side knows %d)", ErrVersion, ver, newest)
	}
	again, err := encMode.Marshal(reflect.ValueOf(v).Elem().Interface())
	if err != nil || !bytes.Equal(again, payload) {
		return fmt.Errorf("%w: not in canonical form", ErrMalformed)
	}
	return nil
}

// newestOf is the last version that changed what is signed under a content type.
func newestOf(contentType string) uint64 {
	if contentType == TypeDesired {
		return NewestDesired
	}
	return 1
}

func payloadVersion(payload []byte) (uint64, bool) {
	var m struct {
		Version uint64 `cbor:"1,keyasint"`
	}
	if looseMode.Unmarshal(payload, &m) == nil {
		return m.Version, true
	}
	var a []cbor.RawMessage
	if looseMode.Unmarshal(payload, &a) == nil && len(a) > 0 {
		var v uint64
		if looseMode.Unmarshal(a[0], &v) == nil {
			return v, true
		}
	}
	return 0, false
}
