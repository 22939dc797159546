package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/nacl/secretbox"

	"github.com/weaveworks/mesh"
)

// Just enough of the sleeve overlay for connections to become established: heartbeats and the answers to the
// other side's tests, plain or sealed. Frames of containers are not for us and are dropped.

const (
	heartbeatInterval = 500 * time.Millisecond
	// A heartbeat is an Ethernet header of zeros and the connection's UID; a frame of this size tests fragments.
	heartbeatSize, fragmentTestSize = 14 + 8, 60001
	// The only overlay that we offer, so the first of those that we have in common with anybody.
	overlayIndex = 0

	heartbeatArrived, fragmentsArrived, mtuArrived = 1, 2, 3

	dontFragment, fromDialler = 1 << 63, 0x80
)

type sleeve struct {
	us     mesh.PeerName
	socket *net.UDPConn

	sync.Mutex
	paths map[mesh.PeerName]*path
}

// path is the overlay's part of one connection.
type path struct {
	*sleeve
	mesh.OverlayConnectionParams
	remote      *net.UDPAddr // nil until the dialler's first heartbeat
	sequence    uint64
	heard       bool
	established chan struct{}
	stopped     chan struct{}
	up, down    sync.Once
}

func newSleeve(us mesh.PeerName, port int) (*sleeve, error) {
	socket, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err != nil {
		return nil, err
	}
	s := &sleeve{us: us, socket: socket, paths: make(map[mesh.PeerName]*path)}
	go s.receive()
	return s, nil
}

func (s *sleeve) AddFeaturesTo(features map[string]string) { features["Overlays"] = "sleeve" }
func (s *sleeve) Diagnostics() interface{}                 { return nil }
func (s *sleeve) Stop()                                    { s.socket.Close() }

func (s *sleeve) PrepareConnection(params mesh.OverlayConnectionParams) (mesh.OverlayConnection, error) {
	if !strings.Contains(" "+params.Features["Overlays"]+" ", " sleeve ") {
		return nil, errors.New("no overlays in common with peer")
	}
	p := &path{
		sleeve:                  s,
		OverlayConnectionParams: params,
		established:             make(chan struct{}),
		stopped:                 make(chan struct{}),
	}
	if params.Outbound {
		p.remote = &net.UDPAddr{IP: params.RemoteAddr.IP, Port: params.RemoteAddr.Port}
	}
	return p, nil
}

func (s *sleeve) receive() {
	buffer := make([]byte, 65536)
	for {
		n, from, err := s.socket.ReadFromUDP(buffer)
		if err != nil {
			return
		}
		if n < 6 {
			continue
		}
		s.Lock()
		p := s.paths[mesh.PeerNameFromBin(buffer[:6])]
		s.Unlock()
		if p != nil {
			p.packet(buffer[6:n], from)
		}
	}
}

// Confirm is called when the connection is wanted: from now on there are heartbeats.
func (p *path) Confirm() {
	p.Lock()
	p.paths[p.RemotePeer.Name] = p
	p.Unlock()
	go func() {
		ticker := time.NewTicker(heartbeatInterval)
		defer ticker.Stop()
		for {
			p.heartbeat()
			select {
			case <-ticker.C:
			case <-p.stopped:
				return
			}
		}
	}()
}

func (p *path) EstablishedChannel() <-chan struct{} { return p.established }
func (p *path) ErrorChannel() <-chan error          { return nil }
func (p *path) Attrs() map[string]interface{}       { return map[string]interface{}{"name": "sleeve"} }
func (p *path) encrypted() bool                     { return p.SessionKey != nil }
func (p *path) tell(tag byte, value ...byte) {
	_ = p.control(append([]byte{overlayIndex, tag}, value...))
}
func (p *path) control(message []byte) error {
	return p.SendControlMessage(mesh.ProtocolOverlayControlMsg, message)
}
func (p *path) nonce(outbound bool, n uint64) *[24]byte {
	var nonce [24]byte
	if outbound {
		nonce[0] = fromDialler
	}
	binary.BigEndian.PutUint64(nonce[16:], n)
	return &nonce
}

func (p *path) Stop() {
	p.down.Do(func() { close(p.stopped) })
	p.Lock()
	defer p.Unlock()
	if p.paths[p.RemotePeer.Name] == p {
		delete(p.paths, p.RemotePeer.Name)
	}
}

func (p *path) ControlMessage(tag byte, message []byte) {
	if tag == mesh.ProtocolOverlayControlMsg && len(message) == 2 && message[1] == heartbeatArrived {
		p.up.Do(func() { close(p.established) })
	}
}

func binaryName(name mesh.PeerName) []byte {
	var wide [8]byte
	binary.BigEndian.PutUint64(wide[:], uint64(name))
	return wide[2:]
}

func (p *path) heartbeat() {
	p.Lock()
	defer p.Unlock()
	if p.remote == nil {
		return
	}
	us := binaryName(p.us)
	record := append(append([]byte{}, us...), binaryName(p.RemotePeer.Name)...)
	frame := make([]byte, heartbeatSize)
	binary.BigEndian.PutUint64(frame[14:], p.ConnUID)
	record = append(append(record, 0, heartbeatSize), frame...)
	packet := append([]byte{}, us...)
	if p.encrypted() {
		mark := p.sequence | dontFragment
		p.sequence++
		packet = binary.BigEndian.AppendUint64(packet, mark)
		packet = secretbox.Seal(packet, record, p.nonce(p.Outbound, mark), p.SessionKey)
	} else {
		packet = append(packet, record...)
	}
	_, _ = p.socket.WriteToUDP(packet, p.remote)
}

// packet takes what follows the sender's name.
func (p *path) packet(data []byte, from *net.UDPAddr) {
	if p.encrypted() {
		if len(data) < 8 {
			return
		}
		mark := binary.BigEndian.Uint64(data)
		opened, ok := secretbox.Open(nil, data[8:], p.nonce(!p.Outbound, mark), p.SessionKey)
		if !ok {
			return
		}
		data = opened
	}
	for len(data) >= 14 {
		size := int(binary.BigEndian.Uint16(data[12:]))
		if len(data) < 14+size {
			return
		}
		p.frame(data[14:14+size], from)
		data = data[14+size:]
	}
}

func (p *path) frame(frame []byte, from *net.UDPAddr) {
	if len(frame) < 14 || !bytes.Equal(frame[:14], make([]byte, 14)) {
		return
	}
	switch len(frame) {
	case heartbeatSize:
		if binary.BigEndian.Uint64(frame[14:]) != p.ConnUID {
			return
		}
		p.Lock()
		first := !p.heard
		p.heard, p.remote = true, from
		p.Unlock()
		if first {
			p.tell(heartbeatArrived)
		}
	case fragmentTestSize:
		p.tell(fragmentsArrived)
	default:
		mtu := len(frame) - 14
		p.tell(mtuArrived, byte(mtu>>8), byte(mtu))
	}
}
