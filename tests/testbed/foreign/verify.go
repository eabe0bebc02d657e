package main

import (
	"errors"
	"os"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func verify(args []string) error {
	if len(args) != 3 {
		return errors.New("wants SVID.pem KEY.pem BUNDLE.pem")
	}
	chain, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	key, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	svid, err := x509svid.Parse(chain, key)
	if err != nil {
		return err
	}
	bundle, err := x509bundle.Load(svid.ID.TrustDomain(), args[2])
	if err != nil {
		return err
	}
	id, err := parseAndVerify(svid, bundle)
	if err != nil {
		return err
	}
	line := Line{Event: "verified", ID: id.String(), Chain: len(svid.Certificates), Roots: roots(bundle)}
	line.describe(svid.Certificates[0])
	report(line)
	return nil
}

// The certificates go through go-spiffe's parser a second time, as raw DER,
// because that is the way a peer's chain comes in.
func parseAndVerify(svid *x509svid.SVID, bundle *x509bundle.Bundle) (spiffeid.ID, error) {
	var raw [][]byte
	for _, certificate := range svid.Certificates {
		raw = append(raw, certificate.Raw)
	}
	id, _, err := x509svid.ParseAndVerify(raw, bundle)
	return id, err
}
