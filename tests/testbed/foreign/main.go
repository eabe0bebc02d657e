// Command foreign is a client and server built on go-spiffe, a user of gRPC-Go's
// certificate providers, and a verifier of logs built on the Go checksum database's
// packages. Their code shares nothing
// with ours: what they accept is what the rest of the world accepts.
// Facts go to standard output, one JSON object a line; the exit code is 0 only
// when what was asked for happened.
package main

import (
	"fmt"
	"os"
)

const usage = `usage: foreign COMMAND
  verify SVID.pem KEY.pem BUNDLE.pem   parse the pair, verify the chain, print the ID
  source --updates N --timeout D       watch the Workload API
  client --addr HOST:PORT --expect-id ID [--count N | --forever] [--interval D]
  server --listen HOST:PORT --expect-id ID
  provider --bootstrap FILE --expect-id ID --updates N --timeout D
                                       gRPC's certificate providers
  log --source DIR|URL --key KEY [--entries N] [--older DIR] [--proofs FILE]
source, client and server find the Workload API by SPIFFE_ENDPOINT_SOCKET.`

var commands = map[string]func([]string) error{
	"verify":   verify,
	"source":   source,
	"client":   client,
	"log":      verifyLog,
	"provider": provider,
	"server":   server,
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "foreign "+os.Args[1]+":", err)
		os.Exit(1)
	}
}
