// A peer on the mesh library that Weave Net is built on (Debian: golang-github-weaveworks-mesh-dev), so that
// our daemon can be tested against somebody else's implementation of the protocol. It is driven by lines on
// stdin and reports one JSON object a line on stdout:
//
//	topology             peers and connections as this peer sees them
//	connect ADDRESS...   dial these, too
//	unicast NAME TEXT    to one peer, on the channel "test"
//	broadcast TEXT       to all peers, on the channel "test"
//	quit                 leave (so does the end of stdin)
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"flag"
	"log"
	"os"
	"strings"
	"sync"

	"github.com/weaveworks/mesh"
)

var (
	name     = flag.String("name", "", "peer name")
	nickname = flag.String("nickname", "", "nickname")
	password = flag.String("password", "", "password; empty: no encryption")
	words    = flag.String("words", "", "what this peer gossips on the channel \"test\", comma separated")
	listen   = flag.String("listen", "", "channels to listen to, comma separated; others are relayed unheard")
)

// event is one line on stdout. What a channel brings in is in Data, as hex.
type event struct {
	Event   string       `json:"event"`
	Channel string       `json:"channel,omitempty"`
	Source  string       `json:"source,omitempty"`
	Data    string       `json:"data,omitempty"`
	Status  *mesh.Status `json:"status,omitempty"`
}

var output sync.Mutex

func report(e event) {
	output.Lock()
	defer output.Unlock()
	line, err := json.Marshal(e)
	if err != nil {
		log.Fatal(err)
	}
	// One write a line: the test reads while we go on.
	if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
		os.Exit(0)
	}
}

// listener reports whatever arrives on a channel that it does not take part in otherwise.
type listener struct{ channel string }

// raw is gossip passed on as it came.
type raw [][]byte

func (r raw) Encode() [][]byte { return r }

func (r raw) Merge(other mesh.GossipData) mesh.GossipData { return append(r, other.(raw)...) }

func (l listener) heard(how, source string, data []byte) {
	report(event{Event: how, Channel: l.channel, Source: source, Data: hex.EncodeToString(data)})
}

func (l listener) OnGossipUnicast(source mesh.PeerName, data []byte) error {
	l.heard("unicast", source.String(), data)
	return nil
}

func (l listener) OnGossipBroadcast(source mesh.PeerName, data []byte) (mesh.GossipData, error) {
	l.heard("broadcast", source.String(), data)
	return raw{data}, nil
}

func (l listener) OnGossip(data []byte) (mesh.GossipData, error) {
	l.heard("gossip", "", data)
	return nil, nil
}

func (l listener) Gossip() mesh.GossipData { return nil }

// talker also tells its words to every new neighbour and, every 30 s, to random ones.
type talker struct {
	listener
	words string
}

func (t talker) Gossip() mesh.GossipData {
	if t.words == "" {
		return nil
	}
	return raw{[]byte(t.words)}
}

func main() {
	flag.Parse()
	log.SetOutput(os.Stderr)
	us, err := mesh.PeerNameFromUserInput(*name)
	if err != nil {
		log.Fatal(err)
	}
	overlay, err := newSleeve(us, mesh.Port)
	if err != nil {
		log.Fatal(err)
	}
	config := mesh.Config{
		Port:               mesh.Port,
		ProtocolMinVersion: mesh.ProtocolMinVersion,
		Password:           []byte(*password),
		ConnLimit:          64,
		PeerDiscovery:      true,
	}
	if *password == "" {
		config.Password = nil
	}
	router, err := mesh.NewRouter(config, us, *nickname, overlay, log.New(os.Stderr, "mesh: ", log.LstdFlags))
	if err != nil {
		log.Fatal(err)
	}
	test, err := router.NewGossip("test", talker{listener{"test"}, *words})
	if err != nil {
		log.Fatal(err)
	}
	for _, channel := range strings.FieldsFunc(*listen, func(r rune) bool { return r == ',' }) {
		if _, err := router.NewGossip(channel, listener{channel}); err != nil {
			log.Fatal(err)
		}
	}
	router.Start()
	connect := func(peers []string) {
		for _, err := range router.ConnectionMaker.InitiateConnections(peers, false) {
			log.Fatal(err)
		}
	}
	connect(flag.Args())
	report(event{Event: "started"})

	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		command := strings.SplitN(lines.Text(), " ", 3)
		switch {
		case command[0] == "topology":
			report(event{Event: "topology", Status: mesh.NewStatus(router)})
		case command[0] == "connect" && len(command) > 1:
			connect(command[1:])
		case command[0] == "unicast" && len(command) == 3:
			to, err := mesh.PeerNameFromUserInput(command[1])
			if err == nil {
				err = test.GossipUnicast(to, []byte(command[2]))
			}
			if err != nil {
				report(event{Event: "error", Data: err.Error()})
			}
		case command[0] == "broadcast" && len(command) > 1:
			test.GossipBroadcast(raw{[]byte(strings.Join(command[1:], " "))})
		case command[0] == "quit":
			return
		default:
			report(event{Event: "error", Data: "unknown command: " + lines.Text()})
		}
	}
}
