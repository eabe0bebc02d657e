package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc/credentials/tls/certprovider"
	// Registers "file_watcher".
	_ "google.golang.org/grpc/credentials/tls/certprovider/pemfile"
)

// bootstrap is what of a bootstrap file (gRFC A29) is about certificates.
type bootstrap struct {
	Providers map[string]struct {
		Plugin string          `json:"plugin_name"`
		Config json.RawMessage `json:"config"`
	} `json:"certificate_providers"`
}

// provider watches gRPC-Go's certificate providers, and speaks mTLS with itself on each
// of their certificates.
func provider(args []string) error {
	flags := flag.NewFlagSet("provider", flag.ExitOnError)
	file := flags.String("bootstrap", "", "the bootstrap file")
	id := flags.String("expect-id", "", "whose certificates they are")
	updates := flags.Int("updates", 1, "end after this many certificates")
	timeout := flags.Duration("timeout", time.Minute, "fail if they did not come within this time")
	flags.Parse(args)

	text, err := os.ReadFile(*file)
	if err != nil {
		return err
	}
	var config bootstrap
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	if len(config.Providers) == 0 {
		return fmt.Errorf("%s has no certificate_providers", *file)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	for name, one := range config.Providers {
		options := certprovider.BuildOptions{CertName: name, WantIdentity: true, WantRoot: true}
		provider, err := certprovider.GetProvider(one.Plugin, one.Config, options)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer provider.Close()
		if err := follow(ctx, provider, *id, *updates); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func follow(ctx context.Context, provider certprovider.Provider, id string, updates int) error {
	last := ""
	for seen := 0; seen < updates; {
		material, err := provider.KeyMaterial(ctx)
		if err != nil {
			return fmt.Errorf("after %d certificates: %w", seen, err)
		}
		leaf, err := x509.ParseCertificate(material.Certs[0].Certificate[0])
		if err != nil {
			return err
		}
		if now := serial(leaf); now != last {
			if err := handshake(material, id); err != nil {
				return err
			}
			line := Line{Event: "provided", ID: id, Chain: len(material.Certs[0].Certificate)}
			line.describe(leaf)
			report(line)
			last = now
			seen++
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %d certificates: %w", seen, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// handshake is mTLS of two parties that hold the same material.
func handshake(material *certprovider.KeyMaterial, id string) error {
	config := &tls.Config{
		Certificates: material.Certs,
		ClientAuth:   tls.RequireAnyClientCert,
		// SVIDs have no host names: as gRPC's own credentials, the chain is verified here.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyPeer(state.PeerCertificates, material.Roots, id)
		},
	}
	left, right := net.Pipe()
	defer left.Close()
	defer right.Close()
	served := make(chan error, 1)
	go func() { served <- tls.Server(left, config).Handshake() }()
	if err := tls.Client(right, config).Handshake(); err != nil {
		return err
	}
	return <-served
}

func verifyPeer(chain []*x509.Certificate, roots *x509.CertPool, id string) error {
	above := x509.NewCertPool()
	for _, certificate := range chain[1:] {
		above.AddCert(certificate)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: above,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return err
	}
	if len(chain[0].URIs) != 1 || chain[0].URIs[0].String() != id {
		return fmt.Errorf("the peer is %v, not %s", chain[0].URIs, id)
	}
	return nil
}
