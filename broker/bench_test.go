package broker_test

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"go.etcd.io/bbolt"

	"shoal.dev/shoal/broker"
	"shoal.dev/shoal/internal/mqtt"
)

// BenchmarkFanOut publishes to readers over TCP and counts deliveries that arrived.
func BenchmarkFanOut(b *testing.B) {
	for _, readers := range []int{1, 100, 1000} {
		for _, size := range []int{100, 32 << 10} {
			b.Run(fmt.Sprintf("readers=%d/bytes=%d", readers, size), func(b *testing.B) {
				br := start(b, func(o *broker.Options) { o.MaxQueueBytes = 1 << 30 })
				var got atomic.Int64
				for i := range readers {
					c := rawClient(b, br, fmt.Sprintf("user-%d", i), func(p *packets.Connect) { p.Username = "user" })
					c.subscribe(0, "suite/x")
					go func() {
						buf := make([]byte, 64<<10)
						for {
							n, err := c.Conn.Read(buf)
							if err != nil {
								return
							}
							got.Add(int64(n))
						}
					}()
				}
				m := mqtt.Message{Topic: "suite/x", Payload: make([]byte, size)}
				if err := br.Publish(context.Background(), m); err != nil {
					b.Fatal(err)
				}
				eventually(b, "the first", func() bool { return got.Load() > 0 && got.Load()%int64(readers) == 0 })
				each := got.Load() / int64(readers)
				got.Store(0)
				b.ResetTimer()
				for range b.N {
					if err := br.Publish(context.Background(), m); err != nil {
						b.Fatal(err)
					}
					for int64(b.N) > 100 && got.Load() == 0 { // let the readers begin
						runtime.Gosched()
					}
				}
				for want := int64(b.N) * int64(readers) * each; got.Load() < want; {
					time.Sleep(100 * time.Microsecond) // polls a counter
				}
				b.ReportMetric(float64(b.N)*float64(readers)/b.Elapsed().Seconds(), "deliveries/s")
			})
		}
	}
}

// BenchmarkRetained makes retained messages durable: one publisher (one fsync each), many (group commit), and bbolt for
// comparison in both ways.
func BenchmarkRetained(b *testing.B) {
	payload := make([]byte, 512)
	report := func(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "durable/s") }
	for _, writers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("log/publishers=%d", writers), func(b *testing.B) {
			br := start(b, func(o *broker.Options) { o.Store = filepath.Join(b.TempDir(), "retained") })
			b.ResetTimer()
			share(b.N, writers, func(i int) {
				if err := br.Publish(context.Background(), mqtt.Message{Topic: fmt.Sprintf("suite/%d", i%5000), Payload: payload, Retain: true}); err != nil {
					b.Error(err)
				}
			})
			report(b)
		})
		b.Run(fmt.Sprintf("bbolt/publishers=%d", writers), func(b *testing.B) {
			db, err := bbolt.Open(filepath.Join(b.TempDir(), "bbolt"), 0o600, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close() //nolint:errcheck // a benchmark
			bucket := []byte("retained")
			if err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket(bucket); return err }); err != nil {
				b.Fatal(err)
			}
			write := db.Batch
			if writers == 1 {
				write = db.Update
			}
			b.ResetTimer()
			share(b.N, writers, func(i int) {
				if err := write(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put(fmt.Appendf(nil, "suite/%d", i%5000), payload) }); err != nil {
					b.Error(err)
				}
			})
			report(b)
		})
	}
}

func share(n, workers int, f func(int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range workers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				f(int(i))
			}
		})
	}
	wg.Wait()
}

// BenchmarkConnection is what an idle connection and a small retained message cost in memory.
func BenchmarkConnection(b *testing.B) {
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapInuse + m.StackInuse)
	}
	for _, encrypted := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%v", encrypted), func(b *testing.B) {
			br := start(b, func(o *broker.Options) {
				if encrypted {
					o.TLS = serverTLS(b)
				}
			})
			const n = 500
			before := heap()
			for i := range n {
				if encrypted { // the client's side is in the figure as well
					tlsClient(b, br, fmt.Sprintf("user-%d", i))
				} else {
					rawClient(b, br, fmt.Sprintf("user-%d", i), func(p *packets.Connect) { p.Username = "user" })
				}
			}
			eventually(b, "all connections", func() bool { return br.Connections() == n })
			b.ReportMetric((heap()-before)/n, "B/connection")
			for range b.N {
			}
		})
	}
	b.Run("retained", func(b *testing.B) {
		br := start(b, nil)
		const n = 50_000
		before := heap()
		fill(b, br, n)
		b.ReportMetric((heap()-before)/n, "B/retained")
		for range b.N {
		}
	})
}

// BenchmarkReplay is a wildcard subscription in process and over TCP.
func BenchmarkReplay(b *testing.B) {
	br := start(b, nil)
	const n = 20_000
	fill(b, br, n)
	b.Run("in-process", func(b *testing.B) {
		for range b.N {
			stop, err := br.Subscribe(context.Background(), func(mqtt.Message) {}, "shoal/#")
			if err != nil {
				b.Fatal(err)
			}
			stop()
		}
		b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
	b.Run("tcp", func(b *testing.B) {
		for range b.N {
			c := rawClient(b, br, "root", nil)
			c.subscribe(0, "shoal/#")
			for range n {
				c.next()
			}
			_ = c.Close()
		}
		b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
}

// BenchmarkIdle is what 60,000 retained messages cost at rest: stock mochi copies all of them each second. A figure, not a
// test: how much CPU time a machine spends is not for an assertion.
func BenchmarkIdle(b *testing.B) {
	br := start(b, nil)
	fill(b, br, 60_000)
	cpu := func() time.Duration {
		var ru syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
			b.Fatal(err)
		}
		return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	runtime.GC()
	before := cpu()
	for b.Loop() {
		time.Sleep(100 * time.Millisecond) // the length of the measurement, not a wait
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.Elapsed())*100, "%core")
}
