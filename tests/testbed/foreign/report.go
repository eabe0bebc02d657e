package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// Line is what every command prints; a test reads it back.
type Line struct {
	At    time.Time `json:"at"`
	Event string    `json:"event"`

	ID        string     `json:"id,omitempty"`
	Serial    string     `json:"serial,omitempty"`
	NotBefore *time.Time `json:"not_before,omitempty"`
	NotAfter  *time.Time `json:"not_after,omitempty"`
	Chain     int        `json:"chain,omitempty"`
	Hint      string     `json:"hint,omitempty"`

	Roots []string `json:"roots,omitempty"`

	PeerID     string `json:"peer_id,omitempty"`
	PeerSerial string `json:"peer_serial,omitempty"`
	Status     int    `json:"status,omitempty"`
	Address    string `json:"address,omitempty"`
	Error      string `json:"error,omitempty"`

	Size    int64  `json:"size,omitempty"`
	Root    string `json:"root,omitempty"`
	Entries int    `json:"entries,omitempty"`
	Older   int    `json:"older,omitempty"`
	Proofs  int    `json:"proofs,omitempty"`
}

var printing sync.Mutex

func report(line Line) {
	line.At = time.Now().UTC()
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	printing.Lock()
	defer printing.Unlock()
	fmt.Fprintln(os.Stdout, string(text))
}

// describe fills in what a certificate says of itself.
func (l *Line) describe(leaf *x509.Certificate) {
	l.Serial = serial(leaf)
	l.NotBefore, l.NotAfter = &leaf.NotBefore, &leaf.NotAfter
}

func serial(certificate *x509.Certificate) string {
	return hex.EncodeToString(certificate.SerialNumber.Bytes())
}

func roots(bundle *x509bundle.Bundle) (hashes []string) {
	for _, authority := range bundle.X509Authorities() {
		hash := sha256.Sum256(authority.Raw)
		hashes = append(hashes, hex.EncodeToString(hash[:]))
	}
	return hashes
}
