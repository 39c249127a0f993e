package link

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is a target that sends everything back.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func open(t *testing.T) (*Link, func() net.Conn) {
	t.Helper()
	l, err := New(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l, func() net.Conn {
		c, err := net.Dial("tcp", l.Addr())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
}

func roundTrip(c net.Conn, n int) (time.Duration, error) {
	began := time.Now()
	want := bytes.Repeat([]byte{'x'}, n)
	if _, err := c.Write(want); err != nil {
		return 0, err
	}
	got := make([]byte, n)
	_, err := io.ReadFull(c, got)
	return time.Since(began), err
}

func TestCut(t *testing.T) {
	l, dial := open(t)
	c := dial()
	if _, err := roundTrip(c, 1000); err != nil {
		t.Fatal(err)
	}
	l.Cut()
	if _, err := roundTrip(c, 1); err == nil {
		t.Error("a cut link carries data")
	}
	if c, err := net.Dial("tcp", l.Addr()); err == nil { // may be reset as early as here
		if _, err := roundTrip(c, 1); err == nil {
			t.Error("a cut link takes connections")
		}
		_ = c.Close()
	}
	l.Restore()
	if _, err := roundTrip(dial(), 1000); err != nil {
		t.Errorf("after Restore: %v", err)
	}
}

func TestDelay(t *testing.T) {
	l, dial := open(t)
	c := dial()
	l.SetDelay(100 * time.Millisecond)
	if d, err := roundTrip(c, 1); err != nil || d < 200*time.Millisecond {
		t.Errorf("round trip %s, %v; want 200 ms or more", d, err)
	}
	l.SetDelay(0)
	if d, err := roundTrip(c, 1); err != nil || d > 150*time.Millisecond {
		t.Errorf("without delay: %s, %v", d, err)
	}
}

func TestRate(t *testing.T) {
	l, dial := open(t)
	c := dial()
	l.SetRate(10_000)
	if d, err := roundTrip(c, 3000); err != nil || d < 250*time.Millisecond {
		t.Errorf("3 kB at 10 kB/s took %s, %v", d, err)
	}
}

func TestDropAfter(t *testing.T) {
	l, dial := open(t)
	c := dial()
	l.DropAfter(150) // 100 there, 50 back
	before := l.Bytes()
	if _, err := c.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(c)
	if passed := l.Bytes() - before; passed != 150 || len(got) > 50 {
		t.Errorf("%d bytes passed, %d came back", passed, len(got))
	}
	if _, err := roundTrip(dial(), 1000); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
