package v1alpha1

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// ErrTooLarge is returned by Decode for content that is larger than asked for.
var ErrTooLarge = errors.New("too large")

// NewResource keeps a file as text where that is possible; what is not text becomes base64, compressed where that is
// shorter. The same bytes always give the same resource.
func NewResource(name string, data []byte) BundleResource {
	if utf8.Valid(data) && bytes.IndexByte(data, 0) < 0 {
		return BundleResource{Name: name, Content: string(data)}
	}
	r := NewCompressedResource(name, data)
	if plain := base64.StdEncoding.EncodeToString(data); len(plain) <= len(r.Content) {
		return BundleResource{Name: name, Content: plain, Encoding: EncodingBase64}
	}
	return r
}

// NewCompressedResource keeps a file compressed. The same bytes always give the same resource.
func NewCompressedResource(name string, data []byte) BundleResource {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // the level is a constant
	_, _ = w.Write(data)                                  // a bytes.Buffer takes everything
	_ = w.Close()
	return BundleResource{Name: name, Content: base64.StdEncoding.EncodeToString(b.Bytes()), Encoding: EncodingBase64Gz}
}

// Decode returns the file's bytes. Content that would be larger than limit is not expanded: ErrTooLarge.
func (r BundleResource) Decode(limit int64) ([]byte, error) {
	switch r.Encoding {
	case EncodingText:
		if int64(len(r.Content)) > limit {
			return nil, fmt.Errorf("%s: %w: %d bytes, the limit is %d", r.Name, ErrTooLarge, len(r.Content), limit)
		}
		return []byte(r.Content), nil
	case EncodingBase64, EncodingBase64Gz:
		data, err := base64.StdEncoding.DecodeString(r.Content)
		if err != nil {
			return nil, fmt.Errorf("%s: content is not %s: %w", r.Name, r.Encoding, err)
		}
		if r.Encoding == EncodingBase64Gz {
			z, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				return nil, fmt.Errorf("%s: content is not %s: %w", r.Name, r.Encoding, err)
			}
			if data, err = io.ReadAll(io.LimitReader(z, limit+1)); err != nil {
				return nil, fmt.Errorf("%s: content is not %s: %w", r.Name, r.Encoding, err)
			}
		}
		if int64(len(data)) > limit {
			return nil, fmt.Errorf("%s: %w: the limit is %d bytes", r.Name, ErrTooLarge, limit)
		}
		return data, nil
	default:
		return nil, fmt.Errorf(`%s: unknown encoding %q: use "", "base64" or "base64+gz"`, r.Name, r.Encoding)
	}
}
