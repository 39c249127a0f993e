package render

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"reflect"
	"strings"
	"time"

	//lint:ignore SA1019 bcrypt is made of it, and the library's takes no salt
	"golang.org/x/crypto/blowfish"

	"shoal.dev/shoal/controller/api/v1alpha1"
)

// Random is what random values of charts are made of: the same at every rendering, so that a release does not change by itself.
//
// A value depends on Secret, on helm.randomSeed and on the place of the call: the template that is executed, the file in which the
// call stands, function and arguments, and how often that came before. It does not depend on the version of the chart, on values, or
// on the cluster. The zero value gives examples.
type Random struct {
	Secret [32]byte  // of one bundle; nobody can guess values without it
	Since  time.Time // what now gives
}

// RandomOf derives the Random of one bundle from the hub's secret.
func RandomOf(secret [32]byte, workspace, bundle string, since time.Time) Random {
	return Random{Secret: mac(secret[:], "shoal random values of a bundle", workspace, bundle), Since: since}
}

// mac is unambiguous: no other list of parts gives the same.
func mac(key []byte, parts ...string) [32]byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return [32]byte(h.Sum(nil))
}

// since is what now gives: a date in helm.randomSeed, or r.Since.
func (r Random) since(o v1alpha1.BundleOptions) time.Time {
	if o.Helm != nil {
		for _, form := range []string{time.RFC3339, time.DateOnly} {
			if t, err := time.Parse(form, o.Helm.RandomSeed); err == nil {
				return t.UTC()
			}
		}
	}
	if r.Since.IsZero() {
		return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return r.Since.UTC()
}

// stream is a sequence of bytes that its key determines.
type stream struct{ cipher.Stream }

func newStream(key [32]byte) stream {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the length is right
	}
	return stream{cipher.NewCTR(b, make([]byte, aes.BlockSize))}
}

func (s stream) bytes(n int) []byte {
	b := make([]byte, n)
	s.XORKeyStream(b, b)
	return b
}

// below returns a number below n, all of them equally likely.
func (s stream) below(n int) int {
	limit := ^uint64(0) - ^uint64(0)%uint64(n)
	for {
		if v := binary.BigEndian.Uint64(s.bytes(8)); v < limit {
			return int(v % uint64(n))
		}
	}
}

func (s stream) text(n int, letters string) (string, error) {
	if n < 0 || n > maxRandomText {
		return "", fmt.Errorf("%d characters: use 0 to %d", n, maxRandomText)
	}
	out := make([]byte, n)
	for i := range out {
		out[i] = letters[s.below(len(letters))]
	}
	return string(out), nil
}

const (
	maxRandomText = 1 << 20

	lettersAZ = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	digits09  = "0123456789"
)

// certificate is what templates see of one.
type certificate struct{ Cert, Key string }

// call gives what one of sprig's functions gives, made of s. Arguments are those of the template.
func call(function string, args []any, s stream, now time.Time) (any, error) {
	a := arguments{list: args}
	var v any
	var err error
	switch function {
	case "randAlphaNum":
		v, err = s.text(a.int(), lettersAZ+digits09)
	case "randAlpha":
		v, err = s.text(a.int(), lettersAZ)
	case "randNumeric":
		v, err = s.text(a.int(), digits09)
	case "randAscii":
		var all []byte
		for c := byte(' '); c < 0x7f; c++ {
			all = append(all, c)
		}
		v, err = s.text(a.int(), string(all))
	case "randBytes":
		n := a.int()
		if n < 0 || n > maxRandomText {
			return nil, fmt.Errorf("%d bytes: use 0 to %d", n, maxRandomText)
		}
		v = base64.StdEncoding.EncodeToString(s.bytes(n))
	case "randInt":
		from, to := a.int(), a.int()
		if a.err == nil && to <= from {
			return nil, fmt.Errorf("randInt %d %d: the second number must be larger", from, to)
		}
		if a.err == nil {
			v = from + s.below(to-from)
		}
	case "shuffle":
		text := []rune(a.string())
		for i := len(text) - 1; i > 0; i-- {
			j := s.below(i + 1)
			text[i], text[j] = text[j], text[i]
		}
		v = string(text)
	case "uuidv4":
		b := s.bytes(16)
		b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
		v = fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	case "now":
		v = now
	case "ago":
		v = now.Sub(a.time(now)).Round(time.Second).String()
	case "bcrypt":
		v, err = bcryptHash(a.string(), s)
	case "htpasswd":
		user, password := a.string(), a.string()
		if strings.Contains(user, ":") {
			return "invalid username: " + user, nil // as sprig has it
		}
		hash, e := bcryptHash(password, s)
		v, err = user+":"+hash, e
	case "encryptAES":
		v, err = encryptAES(a.string(), a.string(), s)
	case "genPrivateKey":
		k, e := newKey(a.string(), s)
		if e != nil {
			return nil, e
		}
		v, err = keyPEM(k)
	default:
		v, err = makeCertificate(function, &a, s, now)
	}
	return v, errors.Join(a.err, a.rest(), err)
}

// makeCertificate is genCA, genSelfSignedCert and genSignedCert, each with and without WithKey.
func makeCertificate(function string, a *arguments, s stream, now time.Time) (any, error) {
	kind, withKey := strings.CutSuffix(function, "WithKey")
	c := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(s.bytes(16)), Subject: pkix.Name{CommonName: a.string()}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if kind == "genCA" {
		c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign
	} else {
		for _, ip := range a.strings() {
			parsed := net.ParseIP(ip)
			if parsed == nil {
				return nil, fmt.Errorf("%q is no IP address", ip)
			}
			c.IPAddresses = append(c.IPAddresses, parsed)
		}
		c.DNSNames = a.strings()
	}
	c.NotBefore = now
	c.NotAfter = now.Add(24 * time.Hour * time.Duration(a.int()))
	var ca certificate
	if kind == "genSignedCert" {
		ca = a.certificate()
	}
	var key crypto.Signer
	var err error
	if withKey {
		key, err = parseKeyPEM(a.string())
	} else {
		key, err = newKey("rsa2048", s)
	}
	if err := errors.Join(a.err, err); err != nil {
		return nil, err
	}
	parent, signer := c, key
	if kind == "genSignedCert" {
		block, _ := pem.Decode([]byte(ca.Cert))
		if block == nil {
			return nil, errors.New("the certificate of the CA is no PEM")
		}
		if parent, err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("the certificate of the CA: %w", err)
		}
		if signer, err = parseKeyPEM(ca.Key); err != nil {
			return nil, fmt.Errorf("the key of the CA: %w", err)
		}
	}
	der, err := x509.CreateCertificate(nil, c, parent, key.Public(), signer) // nil: signatures are deterministic
	if err != nil {
		return nil, err
	}
	text, err := keyPEM(key)
	return certificate{Cert: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), Key: text}, err
}

// bcryptHash is the hash of a password, with a salt from s.
func bcryptHash(password string, s stream) (string, error) {
	const cost = 10
	if len(password) > 72 {
		return "", errors.New("bcrypt: a password has at most 72 bytes")
	}
	key, salt := append([]byte(password), 0), s.bytes(16)
	c, err := blowfish.NewSaltedCipher(key, salt)
	if err != nil {
		return "", err
	}
	for range 1 << cost {
		blowfish.ExpandKey(key, c)
		blowfish.ExpandKey(salt, c)
	}
	sum := []byte("OrpheanBeholderScryDoubt")
	for i := 0; i < len(sum); i += blowfish.BlockSize {
		for range 64 {
			c.Encrypt(sum[i:i+blowfish.BlockSize], sum[i:i+blowfish.BlockSize])
		}
	}
	enc := base64.NewEncoding("./" + lettersAZ + digits09).WithPadding(base64.NoPadding)
	return fmt.Sprintf("$2a$%02d$%s%s", cost, enc.EncodeToString(salt), enc.EncodeToString(sum[:23])), nil
}

// encryptAES is AES-256-CBC with PKCS #7 padding behind the initialization vector, in base64. The key is the password, cut or filled
// with zeros.
func encryptAES(password, text string, s stream) (string, error) {
	key := make([]byte, 32)
	copy(key, password)
	b, err := aes.NewCipher(key)
	if err != nil {
		return "", err
	}
	pad := aes.BlockSize - len(text)%aes.BlockSize
	data := append([]byte(text), strings.Repeat(string(rune(pad)), pad)...)
	iv := s.bytes(aes.BlockSize)
	cipher.NewCBCEncrypter(b, iv).CryptBlocks(data, data)
	return base64.StdEncoding.EncodeToString(append(iv, data...)), nil
}

// newKey makes a private key of s. Go's own functions take no source of randomness.
func newKey(kind string, s stream) (crypto.Signer, error) {
	switch kind {
	case "", "rsa":
		return newRSA(4096, s)
	case "rsa2048":
		return newRSA(2048, s)
	case "ecdsa":
		n := elliptic.P256().Params().N
		d := new(big.Int).SetBytes(s.bytes(48)) // so much longer than n that all keys are as good as equally likely
		d.Mod(d, new(big.Int).Sub(n, big.NewInt(1))).Add(d, big.NewInt(1))
		return ecdsa.ParseRawPrivateKey(elliptic.P256(), d.FillBytes(make([]byte, 32)))
	case "ed25519":
		return ed25519.NewKeyFromSeed(s.bytes(ed25519.SeedSize)), nil
	}
	return nil, fmt.Errorf("genPrivateKey %q: known are rsa, ecdsa and ed25519", kind)
}

func newRSA(bits int, s stream) (*rsa.PrivateKey, error) {
	e := big.NewInt(65537)
	one := big.NewInt(1)
	p := prime(bits/2, e, s)
	q := prime(bits/2, e, s)
	for p.Cmp(q) == 0 {
		q = prime(bits/2, e, s)
	}
	phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	k := &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: int(e.Int64())},
		D:         new(big.Int).ModInverse(e, phi), Primes: []*big.Int{p, q},
	}
	if err := k.Validate(); err != nil {
		return nil, fmt.Errorf("make an RSA key: %w", err)
	}
	k.Precompute()
	return k, nil
}

// prime is a prime number p of exactly so many bits, its two highest set, with p-1 coprime to e.
func prime(bits int, e *big.Int, s stream) *big.Int {
	b := s.bytes(bits / 8)
	b[0] |= 0xc0
	b[len(b)-1] |= 1
	p, two, rest := new(big.Int).SetBytes(b), big.NewInt(2), new(big.Int)
	for {
		if rest.Mod(p, e).Cmp(big.NewInt(1)) != 0 && p.ProbablyPrime(20) {
			return p
		}
		if p.Add(p, two); p.BitLen() > bits {
			return prime(bits, e, s)
		}
	}
}

func keyPEM(key any) (string, error) {
	block := &pem.Block{}
	var err error
	switch k := key.(type) {
	case *rsa.PrivateKey:
		block.Type, block.Bytes = "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k)
	case *ecdsa.PrivateKey:
		block.Type = "EC PRIVATE KEY"
		block.Bytes, err = x509.MarshalECPrivateKey(k)
	default:
		block.Type = "PRIVATE KEY"
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(k)
	}
	return string(pem.EncodeToMemory(block)), err
}

func parseKeyPEM(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("the private key is no PEM")
	}
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("the private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}

// arguments are those of a call in a template, taken one by one; the first that does not fit is the error.
type arguments struct {
	list []any
	err  error
}

func (a *arguments) next() any {
	if len(a.list) == 0 {
		if a.err == nil {
			a.err = errors.New("wrong number of args: one is missing")
		}
		return nil
	}
	v := a.list[0]
	a.list = a.list[1:]
	return v
}

func (a *arguments) rest() error {
	if len(a.list) > 0 {
		return errors.New("wrong number of args: there are too many")
	}
	return nil
}

func (a *arguments) wrong(want string, v any) {
	if a.err == nil {
		a.err = fmt.Errorf("wrong type for value; expected %s; got %T", want, v)
	}
}

func (a *arguments) string() string {
	v := a.next()
	s, ok := v.(string)
	if !ok {
		a.wrong("string", v)
	}
	return s
}

func (a *arguments) int() int {
	v := a.next()
	switch r := reflect.ValueOf(v); {
	case r.CanInt():
		return int(r.Int())
	case r.CanUint():
		return int(r.Uint())
	}
	a.wrong("int", v)
	return 0
}

func (a *arguments) time(otherwise time.Time) time.Time {
	switch v := a.next().(type) {
	case time.Time:
		return v
	case int64:
		return time.Unix(v, 0)
	case int:
		return time.Unix(int64(v), 0)
	}
	return otherwise
}

func (a *arguments) strings() []string {
	v := a.next()
	if v == nil {
		return nil
	}
	js, err := json.Marshal(v)
	var out []string
	if err != nil || json.Unmarshal(js, &out) != nil {
		a.wrong("a list of strings", v)
	}
	return out
}

// certificate takes one of ours, or of sprig, whose type is its own.
func (a *arguments) certificate() (c certificate) {
	v := a.next()
	js, err := json.Marshal(v)
	if err != nil || json.Unmarshal(js, &c) != nil || c.Cert == "" {
		a.wrong("a certificate", v)
	}
	return c
}
