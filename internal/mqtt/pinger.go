package mqtt

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/log"
)

// pinger keeps the connection alive and notices a dead one after one and a half keep-alives without a byte from the
// broker. paho's own pinger wants the PINGRESP within a keep-alive, which fails while a large message crawls over a slow link
// in front of it: any byte that arrives is proof of life, and what we sent ourselves is given time to get out.
type pinger struct {
	link  *link
	cause *causeOnce // told first: closing the connection makes other goroutines fail as well
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
	var pinged time.Time
	sent := make(chan struct{}, 1) // one PINGREQ at a time: a blocked link must not gather goroutines
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			read := time.Unix(0, p.link.lastRead.Load())
			wrote := time.Unix(0, p.link.lastWrite.Load())
			patience := keepAlive*3/2 + time.Duration(p.link.unanswered.Load())*time.Second/slowest
			if silent := now.Sub(read); silent > patience && pinged.After(read) {
				err := fmt.Errorf("%w: nothing from the broker for %s", ErrTimeout, silent.Round(time.Millisecond))
				p.cause.set(err)
				return err
			}
			// A little early, so that a broker that counts exactly does not cut us off.
			due := keepAlive * 7 / 8
			if now.Sub(pinged) < due || now.Sub(read) < due && now.Sub(wrote) < due {
				continue
			}
			select {
			case sent <- struct{}{}:
			default:
				continue
			}
			pinged = now
			go func() { // ends at the latest when the connection is closed
				defer func() { <-sent }()
				_, _ = packets.NewControlPacket(packets.PINGREQ).WriteTo(conn)
			}()
		}
	}
}

func (*pinger) PacketSent()         {}
func (*pinger) PacketReceived()     {}
func (*pinger) PingResp()           {}
func (*pinger) SetDebug(log.Logger) {}
