package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func server(args []string) error {
	flags := flag.NewFlagSet("server", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "where to listen")
	expect := flags.String("expect-id", "", "the exact SPIFFE ID that a client must have")
	timeout := flags.Duration("timeout", 30*time.Second, "limit on the first identity")
	flags.Parse(args)
	id, err := spiffeid.FromString(*expect)
	if err != nil {
		return fmt.Errorf("--expect-id: %w", err)
	}

	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	source, err := newSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()

	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id))
	// A resumed session skips the verification that the test is about.
	config.SessionTicketsDisabled = true
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	report(Line{Event: "listening", Address: listener.Addr().String()})
	serving := &http.Server{
		Handler:           http.HandlerFunc(answer),
		ErrorLog:          log.New(failures{}, "", 0),
		ReadHeaderTimeout: *timeout,
	}
	return serving.Serve(tls.NewListener(listener, config))
}

func answer(w http.ResponseWriter, request *http.Request) {
	leaf := request.TLS.PeerCertificates[0]
	peer, err := x509svid.IDFromCert(leaf)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "hello", peer)
	report(Line{Event: "request", PeerID: peer.String(), PeerSerial: serial(leaf)})
}

// failures turns the HTTP server's complaints, failed handshakes among them,
// into lines.
type failures struct{}

func (failures) Write(text []byte) (int, error) {
	report(Line{Event: "failed", Error: strings.TrimSpace(string(text))})
	return len(text), nil
}
