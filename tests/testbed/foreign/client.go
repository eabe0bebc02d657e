package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func client(args []string) error {
	flags := flag.NewFlagSet("client", flag.ExitOnError)
	addr := flags.String("addr", "", "HOST:PORT of an mTLS server that speaks HTTP")
	expect := flags.String("expect-id", "", "the exact SPIFFE ID that the server must have")
	count := flags.Int("count", 1, "how many connections, one after the other")
	forever := flags.Bool("forever", false, "connect until killed, whatever happens")
	interval := flags.Duration("interval", 20*time.Millisecond, "pause between connections")
	timeout := flags.Duration("timeout", 30*time.Second, "limit on the first identity, and on each connection")
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
	failed := 0
	for done := 0; *forever || done < *count; done++ {
		if err := connect(source, *addr, id, *timeout); err != nil {
			failed++
			report(Line{Event: "failed", Error: err.Error()})
		}
		time.Sleep(*interval)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d connections failed", failed, *count)
	}
	return nil
}

// connect makes one request on a connection, and a handshake, of its own.
func connect(source *workloadapi.X509Source, addr string, id spiffeid.ID, timeout time.Duration) error {
	own, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	transport := &http.Transport{
		TLSClientConfig:   tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id)),
		DisableKeepAlives: true,
	}
	answer, err := (&http.Client{Transport: transport, Timeout: timeout}).Get("https://" + addr + "/")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if len(answer.TLS.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP status %s", answer.Status)
	}
	report(Line{
		Event:      "ok",
		ID:         own.ID.String(),
		Serial:     serial(own.Certificates[0]),
		PeerID:     id.String(),
		PeerSerial: serial(answer.TLS.PeerCertificates[0]),
		Status:     answer.StatusCode,
	})
	return nil
}
