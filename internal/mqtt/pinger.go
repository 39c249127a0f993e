package mqtt

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/log"
)

// pinger keeps the connection alive and notices a dead one after one and a half keep-alives without a byte from the
// broker. paho's own pinger wants the PINGRESP within a keep-alive, which fails while a large message crawls over a slow link
// in front of it: any byte that arrives is proof of life, and what we sent ourselves is given time to get out.
type pinger struct {
	link  *link
	cause *causeOnce   // told first: closing the connection makes other goroutines fail as well
	asked atomic.Int64 // link.written after the PINGREQ whose answer is awaited; 0 if none is
}

// slowest is the rate in bytes a second at which a link is taken to be alive while we send.
const slowest = 512

func (p *pinger) Run(ctx context.Context, conn net.Conn, seconds uint16) error {
	if seconds == 0 {
		return nil
	}
	keepAlive := time.Duration(seconds) * time.Second
	tick := time.NewTicker(max(keepAlive/8, 50*time.Millisecond))
	defer tick.Stop()
	pinged := time.Now()
	writing := make(chan struct{}, 1) // one PINGREQ at a time: a blocked link must not gather goroutines
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			read := time.Unix(0, p.link.lastRead.Load())
			patience := keepAlive*3/2 + time.Duration(p.link.written.Load()-p.link.arrived.Load())*time.Second/slowest
			if silent := now.Sub(read); silent > patience && pinged.After(read) {
				err := fmt.Errorf("%w: nothing from the broker for %s", ErrTimeout, silent.Round(time.Millisecond))
				p.cause.set(err)
				return err
			}
			// Also when there is traffic: the answer says how much of what we sent has arrived. A little early, so that
			// a broker that counts exactly does not cut us off.
			if now.Sub(pinged) < keepAlive*3/4 {
				continue
			}
			select {
			case writing <- struct{}{}:
			default:
				continue
			}
			pinged = now
			go func() { // ends at the latest when the connection is closed
				defer func() { <-writing }()
				p.asked.CompareAndSwap(0, p.link.written.Load()+1)
				_, _ = packets.NewControlPacket(packets.PINGREQ).WriteTo(conn)
			}()
		}
	}
}

// PingResp proves that what was written before the PINGREQ has arrived.
func (p *pinger) PingResp() {
	if n := p.asked.Swap(0); n > 0 {
		p.link.arrived.Store(n)
	}
}

func (*pinger) PacketSent()         {}
func (*pinger) PacketReceived()     {}
func (*pinger) SetDebug(log.Logger) {}
