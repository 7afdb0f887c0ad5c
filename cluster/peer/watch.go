package peer

import (
	"fmt"
	"time"
)

const (
	// watchInterval is how often the files and the connections are looked at.
	watchInterval = time.Second
	// joinTime is how long a connection for joining may stay.
	joinTime = time.Minute
	// verifyInterval is how often a certificate is verified again although nothing has changed.
	verifyInterval = time.Minute
)

// watch ends connections that would not be made again.
func (p *Port) watch() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.ctx.Done():
			return
		}
		files := p.files.now()
		for _, c := range p.conns.list() {
			if err := p.still(c, files); err != nil {
				p.log.warn(c.peer, "a connection with a peer was ended", err)
				c.sever()
			}
		}
		p.callers.prune(p.cfg.Directory)
	}
}

// still says why a connection must not stay.
func (p *Port) still(c *conn, files *material) error {
	if err := c.reverify(files); err != nil {
		return err
	}
	if c.peer.Service == Join {
		if time.Since(c.since) > joinTime {
			return fmt.Errorf("joining has taken longer than %v", joinTime)
		}
		return nil
	}
	return p.known(c)
}

// known says why the peer is none any more.
func (p *Port) known(c *conn) error {
	if now := p.epoch(); now != c.epoch {
		return fmt.Errorf("%w: this node is in epoch %v now, and was in %v when it connected", ErrEpoch, now, c.epoch)
	}
	m, ok := p.cfg.Directory.Member(c.peer.ID)
	switch {
	case !ok:
		return fmt.Errorf("%w any more", ErrNotMember)
	case m.Name != c.peer.Name:
		return fmt.Errorf("%w: the member is called %q now", ErrWrongName, m.Name)
	case c.dialled() && m.Address != c.address:
		return fmt.Errorf("the member is at %s now", m.Address)
	}
	return nil
}

// reverify looks at the peer's certificate when it may have become another matter.
func (c *conn) reverify(files *material) error {
	now := time.Now()
	if c.verifiedBy == files && now.Before(c.verifiedUntil) {
		return nil
	}
	if err := c.verify(files.roots); err != nil {
		return err
	}
	c.verifiedBy, c.verifiedUntil = files, now.Add(verifyInterval)
	for _, cert := range c.ConnectionState().PeerCertificates {
		if cert.NotAfter.Before(c.verifiedUntil) {
			c.verifiedUntil = cert.NotAfter
		}
	}
	return nil
}
