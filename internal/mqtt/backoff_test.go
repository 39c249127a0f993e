package mqtt

import (
	"testing"
	"time"
)

// Full jitter from the first attempt: uniform in [0, base·2ⁿ), never above the maximum.
func TestBackoff(t *testing.T) {
	c := &Client{o: Options{BackoffBase: time.Second, BackoffMax: 10 * time.Second}}
	for n, top := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 3: 8 * time.Second, 4: 10 * time.Second, 1000: 10 * time.Second} {
		var low, high int
		for range 2000 {
			d := c.backoff(n)
			if d < 0 || d >= top {
				t.Fatalf("attempt %d: %s, want below %s", n, d, top)
			}
			if d < top/10 {
				low++
			}
			if d > top*9/10 {
				high++
			}
		}
		if low < 100 || high < 100 { // 200 expected
			t.Errorf("attempt %d: %d in the lowest tenth, %d in the highest: not uniform", n, low, high)
		}
	}
}
