package bundlefmt

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Sealed is a bundle ready for the wire.
type Sealed struct {
	Digest  Digest
	RawSize int64
	Size    int64 // bytes of all parts together
	Parts   [][]byte
}

// Header is the signed start of part 0. A Header that OpenHeader returned is verified.
type Header struct {
	Digest   Digest
	RawSize  int64
	BodySize int64
	hashes   []Digest
	start    []byte // what part 0 holds of the body
}

type header struct {
	Version  uint64   `cbor:"1,keyasint"`
	Digest   []byte   `cbor:"2,keyasint"`
	RawSize  uint64   `cbor:"3,keyasint"`
	BodySize uint64   `cbor:"4,keyasint"`
	Parts    [][]byte `cbor:"5,keyasint"`
}

// headerOverhead bounds the signed header without its list of part hashes (measured: about 190 bytes).
const headerOverhead, headerPerPart = 512, 34

// Encoders are expensive to make and safe for concurrent EncodeAll; decoders must be bounded by each message's own raw
// size, and the pool keeps one per concurrent Open.
var (
	encoder  = sync.OnceValues(func() (*zstd.Encoder, error) { return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1)) })
	decoders = sync.Pool{}
)

// Seal compresses and signs b. The same bundle and key give the same parts.
func Seal(b *Bundle, s Signer, l Limits) (Sealed, error) {
	enc, err := encoder()
	if err != nil {
		return Sealed{}, fmt.Errorf("compress bundle: %w", err)
	}
	raw := b.raw()
	if err := atMost("bundle size", int64(len(raw)), l.RawSize); err != nil {
		return Sealed{}, err
	}
	body := enc.EncodeAll(raw, nil)
	if err := atMost("compressed bundle size", int64(len(body)), l.BodySize); err != nil {
		return Sealed{}, err
	}
	chunks, err := split(body, l)
	if err != nil {
		return Sealed{}, err
	}
	d := b.Digest()
	h := header{Version: 1, Digest: d[:], RawSize: uint64(len(raw)), BodySize: uint64(len(body))}
	for _, c := range chunks {
		sum := Sum(c)
		h.Parts = append(h.Parts, sum[:])
	}
	signed, err := sign(s, TypeBundle, h)
	if err != nil {
		return Sealed{}, err
	}
	first := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(signed)+len(chunks[0])), uint32(len(signed)))
	first = append(append(first, signed...), chunks[0]...)
	out := Sealed{Digest: d, RawSize: int64(len(raw)), Parts: append([][]byte{first}, chunks[1:]...)}
	for i, p := range out.Parts {
		if err := atMost(fmt.Sprintf("part %d", i), int64(len(p)), l.PartSize); err != nil {
			return Sealed{}, err
		}
		out.Size += int64(len(p))
	}
	return out, nil
}

// split cuts the body so that part 0 has room for a header that lists every part.
func split(body []byte, l Limits) ([][]byte, error) {
	for n := int64(1); n <= l.Parts; n++ {
		first := l.PartSize - headerOverhead - headerPerPart*n
		if first < 0 {
			break
		}
		if int64(len(body)) > first+(n-1)*l.PartSize {
			continue
		}
		cut := min(first, int64(len(body)))
		chunks := [][]byte{body[:cut]}
		for rest := body[cut:]; len(rest) > 0; {
			c := min(l.PartSize, int64(len(rest)))
			chunks, rest = append(chunks, rest[:c]), rest[c:]
		}
		return chunks, nil
	}
	return nil, &LimitError{What: "compressed bundle size", Limit: l.Parts * l.PartSize, Got: int64(len(body))}
}

// OpenHeader verifies part 0 against the digest that a desired document named.
func OpenHeader(part0 []byte, want Digest, t Trust, l Limits) (*Header, error) {
	signed, start, err := cutPart0(part0, l)
	if err != nil {
		return nil, err
	}
	var h header
	if err := verify(t, TypeBundle, signed, &h); err != nil {
		return nil, fmt.Errorf("bundle header: %w", err)
	}
	if len(h.Digest) != len(Digest{}) || Digest(h.Digest) != want {
		return nil, fmt.Errorf("bundle header: %w", ErrDigest)
	}
	return h.open(start, l)
}

// cutPart0 finds the signed header, and the start of the body behind it.
func cutPart0(part0 []byte, l Limits) (signed, start []byte, err error) {
	if len(part0) == 0 {
		return nil, nil, ErrEmpty
	}
	if err := atMost("part 0", int64(len(part0)), l.PartSize); err != nil {
		return nil, nil, err
	}
	if len(part0) < 4 || int64(binary.BigEndian.Uint32(part0)) > int64(len(part0)-4) {
		return nil, nil, fmt.Errorf("%w: part 0 is truncated", ErrMalformed)
	}
	n := 4 + binary.BigEndian.Uint32(part0)
	return part0[4:n], part0[n:], nil
}

func (h *header) open(start []byte, l Limits) (*Header, error) {
	if len(h.Digest) != len(Digest{}) {
		return nil, fmt.Errorf("bundle header: %w: digest of %d bytes", ErrMalformed, len(h.Digest))
	}
	if err := atMost("bundle size", int64(h.RawSize), l.RawSize); err != nil {
		return nil, err
	}
	if err := atMost("compressed bundle size", int64(h.BodySize), l.BodySize); err != nil {
		return nil, err
	}
	if err := atMost("number of parts", int64(len(h.Parts)), l.Parts); err != nil {
		return nil, err
	}
	out := &Header{Digest: Digest(h.Digest), RawSize: int64(h.RawSize), BodySize: int64(h.BodySize), start: start}
	for _, p := range h.Parts {
		if len(p) != len(Digest{}) {
			return nil, fmt.Errorf("bundle header: %w: part hash", ErrMalformed)
		}
		out.hashes = append(out.hashes, Digest(p))
	}
	if len(out.hashes) == 0 || Sum(out.start) != out.hashes[0] {
		return nil, fmt.Errorf("part 0: %w", ErrDigest)
	}
	if int64(len(out.start)) > out.BodySize {
		return nil, fmt.Errorf("%w: part 0 is longer than the header says", ErrMalformed)
	}
	return out, nil
}

// Parts is how many parts there are, part 0 included.
func (h *Header) Parts() int { return len(h.hashes) }

// CheckPart says whether data is what the signed header names as part i (1 and up).
func (h *Header) CheckPart(i int, data []byte) error {
	if i < 1 || i >= len(h.hashes) {
		return fmt.Errorf("%w: part %d of %d", ErrMalformed, i, len(h.hashes))
	}
	if Sum(data) != h.hashes[i] {
		return fmt.Errorf("part %d: %w", i, ErrDigest)
	}
	return nil
}

// Open verifies and unpacks a whole bundle. It verifies before it decompresses: an unsigned byte must never reach zstd.
func Open(parts [][]byte, want Digest, t Trust, l Limits) (*Bundle, error) {
	if len(parts) == 0 {
		return nil, ErrEmpty
	}
	h, err := OpenHeader(parts[0], want, t, l)
	if err != nil {
		return nil, err
	}
	if len(parts) != h.Parts() {
		return nil, fmt.Errorf("%w: %d parts, the header names %d", ErrMalformed, len(parts), h.Parts())
	}
	body := make([]byte, 0, h.BodySize)
	body = append(body, h.start...)
	for i, p := range parts[1:] {
		if err := h.CheckPart(i+1, p); err != nil {
			return nil, err
		}
		if int64(len(body)+len(p)) > h.BodySize {
			return nil, fmt.Errorf("%w: parts are longer than the header says", ErrMalformed)
		}
		body = append(body, p...)
	}
	if int64(len(body)) != h.BodySize {
		return nil, fmt.Errorf("%w: parts are shorter than the header says", ErrMalformed)
	}
	raw, err := decompress(body, h.RawSize)
	if err != nil {
		return nil, err
	}
	return parse(raw, want, l)
}

// decompress allocates the size that the signed header named and not a byte more.
func decompress(body []byte, size int64) ([]byte, error) {
	dec, ok := decoders.Get().(*zstd.Decoder)
	if !ok {
		var err error
		dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, fmt.Errorf("decompress bundle: %w", err)
		}
	}
	defer decoders.Put(dec)
	raw, err := dec.DecodeAll(body, make([]byte, 0, size))
	if err != nil {
		return nil, fmt.Errorf("%w: decompress bundle: %v", ErrMalformed, err)
	}
	if int64(len(raw)) != size {
		return nil, fmt.Errorf("%w: bundle is %d bytes, the header says %d", ErrMalformed, len(raw), size)
	}
	return raw, nil
}
