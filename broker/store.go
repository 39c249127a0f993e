package broker

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// store is the retained messages on disk: a log of PUBLISH packets in batches, one fsync a batch, rewritten when most of it is
// outdated. Loading reads it once; after that the memory of the broker is the truth and the log only follows it.
//
// File: magic line, then batches of
//
//	mark 4 | body length 4 | CRC-32C of durable and body 4 | durable 8 | body
//
// where durable is the size of the file that was fsynced before this batch was written, and the body is records of
//
//	length 4 | expires 8 | PUBLISH packet in QoS 0 wire form, empty payload = the topic is cleared
//
// All integers are big endian. A batch that does not check out is a torn write, which was never acknowledged, unless a
// later batch claims it was durable: then the file is damaged.
//
// An own log and not bbolt: a group commit of bbolt writes every touched page and its free list (measured, see
// BenchmarkRetained), and a damaged bbolt file can take the process down with a fault instead of an error.
type store struct {
	path string
	lock *os.File
	log  zerolog.Logger

	f      *os.File
	size   int64
	broken bool // the file's tail is unknown: rewrite it before anything else
}

const (
	storeMagic = "shoal retained messages 1\n"
	batchMark  = "\xf5SHB"
	batchHead  = 20
	recordHead = 12
	// rewriteSlack is how much larger than three times its live content the log may grow.
	rewriteSlack = 4 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errDamaged = errors.New("store file is damaged")
)

// mayNotWrite adds what to do where a directory belongs to somebody else.
func mayNotWrite(err error, dir string) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: make %s writable for user %d, who runs this (volumes such as a bare hostPath ignore fsGroup)",
			err, dir, os.Getuid())
	}
	return err
}

// openStore loads path into put, in order. A damaged file is moved aside and reported: the caller starts empty, which deletes
// nothing on any site because absence deletes nothing.
func openStore(path string, log zerolog.Logger, put func(*message)) (s *store, err error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open retained store: %w", mayNotWrite(err, filepath.Dir(path)))
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("open retained store %s: in use by another process, stop that first: %w", path, err)
	}
	s = &store{path: path, lock: lock, log: log}
	var loaded []*message
	good, err := load(path, func(m *message) { loaded = append(loaded, m) })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, s.rewrite(nil)
	case errors.Is(err, errDamaged):
		aside := fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405.000000000"))
		if err := os.Rename(path, aside); err != nil {
			return nil, fmt.Errorf("move damaged retained store aside: %w", err)
		}
		log.Error().Err(err).Str("file", path).Str("moved_to", aside).
			Msg("retained store is damaged: starting empty; the hub and the agents publish their state again")
		return s, s.rewrite(nil)
	case err != nil:
		return nil, fmt.Errorf("read retained store: %w", err)
	}
	for _, m := range loaded {
		put(m)
	}
	if s.f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("open retained store: %w", err)
	}
	size, err := s.f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("open retained store: %w", err)
	}
	if size > good {
		log.Warn().Str("file", path).Int64("bytes", size-good).
			Msg("retained store ends in a torn write, which was never acknowledged: dropped")
		if err := s.f.Truncate(good); err != nil {
			return nil, fmt.Errorf("truncate retained store: %w", err)
		}
		if err := s.f.Sync(); err != nil {
			return nil, fmt.Errorf("sync retained store: %w", err)
		}
	}
	s.size = good
	return s, nil
}

// load reads the good part of the file and returns its length.
func load(path string, put func(*message)) (good int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	r := bufio.NewReaderSize(f, 1<<20)
	head := make([]byte, len(storeMagic))
	if _, err := io.ReadFull(r, head); err != nil || string(head) != storeMagic {
		return 0, fmt.Errorf("%w: no store header", errDamaged)
	}
	good = int64(len(storeMagic))
	for {
		body, _, err := readBatch(r, st.Size()-good)
		if err == io.EOF {
			return good, nil
		}
		if err == nil {
			err = records(body, put)
		}
		if err != nil {
			if claimed(f, good, st.Size()) {
				return 0, fmt.Errorf("%w at byte %d: %w", errDamaged, good, err)
			}
			return good, nil
		}
		good += int64(batchHead + len(body))
	}
}

var errBatch = errors.New("batch does not check out")

// readBatch returns io.EOF only at the clean end. left bounds what a damaged length can make it allocate.
func readBatch(r io.Reader, left int64) (body []byte, durable int64, err error) {
	var h [batchHead]byte
	if n, err := io.ReadFull(r, h[:]); err != nil {
		if n == 0 && err == io.EOF {
			return nil, 0, io.EOF
		}
		return nil, 0, errBatch
	}
	n := int64(binary.BigEndian.Uint32(h[4:]))
	if string(h[:4]) != batchMark || n > left-batchHead {
		return nil, 0, errBatch
	}
	body = make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, 0, errBatch
	}
	if crc32.Update(crc32.Checksum(h[12:], castagnoli), castagnoli, body) != binary.BigEndian.Uint32(h[8:]) {
		return nil, 0, errBatch
	}
	return body, int64(binary.BigEndian.Uint64(h[12:])), nil
}

func records(body []byte, put func(*message)) error {
	for len(body) > 0 {
		if len(body) < recordHead {
			return errBatch
		}
		n := int(binary.BigEndian.Uint32(body))
		expires := int64(binary.BigEndian.Uint64(body[4:]))
		body = body[recordHead:]
		if n > len(body) {
			return errBatch
		}
		m, err := parse(bytes.Clone(body[:n]), expires)
		if err != nil {
			return err
		}
		put(m)
		body = body[n:]
	}
	return nil
}

// claimed says whether some batch behind the bad offset was written after the bytes at bad had been fsynced.
func claimed(f *os.File, bad, size int64) bool {
	rest := make([]byte, size-bad)
	if _, err := f.ReadAt(rest, bad); err != nil && err != io.EOF {
		return true // cannot tell: do not throw away what may be good
	}
	for at := 1; ; at++ {
		i := bytes.Index(rest[min(at, len(rest)):], []byte(batchMark))
		if i < 0 {
			return false
		}
		at += i
		if _, durable, err := readBatch(bytes.NewReader(rest[at:]), int64(len(rest)-at)); err == nil && durable > bad {
			return true
		}
	}
}

func appendBatch(b []byte, durable int64, batch []*message) []byte {
	at := len(b)
	b = append(b, batchMark...)
	b = append(b, make([]byte, batchHead-4)...)
	for _, m := range batch {
		b = binary.BigEndian.AppendUint32(b, uint32(len(m.wire)))
		b = binary.BigEndian.AppendUint64(b, uint64(m.expires))
		b = append(b, m.wire...)
	}
	h := b[at:]
	binary.BigEndian.PutUint32(h[4:], uint32(len(h)-batchHead))
	binary.BigEndian.PutUint64(h[12:], uint64(durable))
	binary.BigEndian.PutUint32(h[8:], crc32.Checksum(h[12:], castagnoli))
	return b
}

// append makes batch durable. live visits what the broker holds now, without batch, for a rewrite.
func (s *store) append(batch []*message, liveBytes int64, live func(func(*message))) error {
	if s.broken || s.size > 3*liveBytes+rewriteSlack {
		if err := s.rewrite(live); err != nil {
			s.broken = true
			return err
		}
	}
	b := appendBatch(nil, s.size, batch)
	if _, err := s.f.WriteAt(b, s.size); err != nil {
		s.broken = true
		return fmt.Errorf("write retained store: %w", err)
	}
	// After a failed fsync the kernel may have dropped the pages: only a rewrite makes the file trustworthy again.
	if err := s.f.Sync(); err != nil {
		s.broken = true
		return fmt.Errorf("sync retained store: %w", err)
	}
	s.size += int64(len(b))
	return nil
}

// rewrite replaces the file by one that holds what live visits, atomically.
func (s *store) rewrite(live func(func(*message))) (err error) {
	tmp := s.path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("rewrite retained store: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(tmp)
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	size, _ := w.WriteString(storeMagic)
	var batch []*message
	pending := 0
	flush := func() {
		// durable is 0: nothing before this batch is promised until the rename.
		n, _ := w.Write(appendBatch(nil, 0, batch)) // bufio keeps the error for Flush
		size += n
		batch, pending = batch[:0], 0
	}
	if live != nil {
		live(func(m *message) {
			batch = append(batch, m)
			if pending += len(m.wire); pending > 1<<20 {
				flush()
			}
		})
		flush()
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("rewrite retained store: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("rewrite retained store: %w", err)
	}
	if err := os.Rename(tmp, s.path); err != nil {
		return fmt.Errorf("rewrite retained store: %w", err)
	}
	if s.f != nil {
		_ = s.f.Close()
	}
	s.f, s.size, s.broken = f, int64(size), false
	if err := syncDir(filepath.Dir(s.path)); err != nil {
		s.broken = true
		return fmt.Errorf("rewrite retained store: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // only synced
	return d.Sync()
}

// close leaves an empty batch that vouches for everything before it, so that damage to the last messages is noticed.
func (s *store) close() error {
	var err error
	if !s.broken {
		b := appendBatch(nil, s.size, nil)
		if _, err = s.f.WriteAt(b, s.size); err == nil {
			err = s.f.Sync()
		}
	}
	return errors.Join(err, s.f.Close(), s.lock.Close())
}
