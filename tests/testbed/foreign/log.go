package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// The most that one resource of a log may have: a bundle of 256 entries.
const maxResource = 256 * (2 + 65535)

// Proofs that the other side made; each has to be the one that we would make.
type proofs struct {
	Inclusion []struct {
		Index  int64    `json:"index"`
		Size   int64    `json:"size"`
		Hashes []string `json:"hashes"`
	} `json:"inclusion"`
	Consistency []struct {
		Old    int64    `json:"old"`
		New    int64    `json:"new"`
		Hashes []string `json:"hashes"`
	} `json:"consistency"`
}

// verifyLog checks a log from its checkpoint and tiles alone (C2SP tlog-tiles),
// with the implementation of the Go checksum database.
func verifyLog(args []string) error {
	flags := flag.NewFlagSet("log", flag.ContinueOnError)
	source := flags.String("source", "", "a folder, or the URL prefix of a log")
	key := flags.String("key", "", "the log's verifier key")
	entries := flags.Int("entries", 0, "random entries whose inclusion is verified")
	minimum := flags.Int64("minimum", 0, "the log's minimum index: no entries below it")
	seed := flags.Uint64("seed", 1, "of the random choice")
	older := flags.String("older", "", "a folder of earlier checkpoints")
	theirs := flags.String("proofs", "", "a file of proofs to be compared")
	roots := flags.String("roots", "", "a file of the roots of an https source, PEM")
	server := flags.String("server-name", "", "the DNS name that an https source must have")
	token := flags.String("token", "", "a bearer token for an https source")
	if err := flags.Parse(args); err != nil {
		return err
	}
	verifier, err := note.NewVerifier(*key)
	if err != nil {
		return fmt.Errorf("--key: %w", err)
	}
	log := &logSource{place: *source, token: *token}
	if *roots != "" {
		pem, err := os.ReadFile(*roots)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("no certificate in %s", *roots)
		}
		config := &tls.Config{RootCAs: pool, ServerName: *server}
		log.client.Transport = &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	}
	signed, err := log.read("checkpoint")
	if err != nil {
		return err
	}
	tree, err := openCheckpoint(signed, verifier)
	if err != nil {
		return err
	}
	line := Line{Event: "log", Size: tree.N, Root: tree.Hash.String()}
	hashes := tlog.TileHashReader(tree, log)
	if root, err := tlog.TreeHash(tree.N, hashes); err != nil || root != tree.Hash {
		return fmt.Errorf("the tiles give the root %v (%w)", root, err)
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	for ; line.Entries < *entries; line.Entries++ {
		if err := log.checkEntry(tree, hashes, *minimum+random.Int64N(tree.N-*minimum)); err != nil {
			return err
		}
	}
	if line.Older, err = checkOlder(*older, tree, hashes, verifier); err != nil {
		return err
	}
	if line.Proofs, err = compareProofs(*theirs, hashes); err != nil {
		return err
	}
	report(line)
	return nil
}

func openCheckpoint(signed []byte, verifier note.Verifier) (tlog.Tree, error) {
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("checkpoint: %w", err)
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return tlog.Tree{}, fmt.Errorf("no checkpoint of %s: %q", verifier.Name(), opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

func checkOlder(folder string, tree tlog.Tree, hashes tlog.HashReader, verifier note.Verifier) (count int, err error) {
	if folder == "" {
		return 0, nil
	}
	files, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		return 0, err
	}
	for _, file := range files {
		signed, err := os.ReadFile(file)
		if err != nil {
			return count, err
		}
		old, err := openCheckpoint(signed, verifier)
		if err != nil {
			return count, fmt.Errorf("%s: %w", file, err)
		}
		proof, err := tlog.ProveTree(tree.N, old.N, hashes)
		if err == nil {
			err = tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash)
		}
		if err != nil {
			return count, fmt.Errorf("%s is not the beginning of the log: %w", file, err)
		}
		count++
	}
	return count, nil
}

func compareProofs(file string, hashes tlog.HashReader) (count int, err error) {
	if file == "" {
		return 0, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var theirs proofs
	if err := json.Unmarshal(text, &theirs); err != nil {
		return 0, err
	}
	for _, one := range theirs.Inclusion {
		ours, err := tlog.ProveRecord(one.Size, one.Index, hashes)
		if err != nil {
			return count, err
		}
		if err := equal(ours, one.Hashes); err != nil {
			return count, fmt.Errorf("inclusion of %d in %d: %w", one.Index, one.Size, err)
		}
		count++
	}
	for _, one := range theirs.Consistency {
		ours, err := tlog.ProveTree(one.New, one.Old, hashes)
		if err != nil {
			return count, err
		}
		if err := equal(ours, one.Hashes); err != nil {
			return count, fmt.Errorf("consistency of %d with %d: %w", one.Old, one.New, err)
		}
		count++
	}
	return count, nil
}

func equal(ours []tlog.Hash, theirs []string) error {
	if len(ours) != len(theirs) {
		return fmt.Errorf("%d hashes instead of %d", len(theirs), len(ours))
	}
	for i, hash := range ours {
		if base64.StdEncoding.EncodeToString(hash[:]) != theirs[i] {
			return fmt.Errorf("hash %d is %s instead of %v", i, theirs[i], hash)
		}
	}
	return nil
}

// logSource reads the resources of a log. It is a tlog.TileReader.
type logSource struct {
	place  string
	token  string
	client http.Client
}

func (l *logSource) checkEntry(tree tlog.Tree, hashes tlog.HashReader, index int64) error {
	number := index / 256
	width := min(tree.N-number*256, 256)
	bundle, err := l.read("tile/entries/" + tilePath(number, width))
	if err != nil {
		return err
	}
	entries, err := splitBundle(bundle, width)
	if err != nil {
		return fmt.Errorf("bundle %d: %w", number, err)
	}
	proof, err := tlog.ProveRecord(tree.N, index, hashes)
	if err != nil {
		return err
	}
	hash := tlog.RecordHash(entries[index%256])
	if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, hash); err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	return nil
}

func splitBundle(bundle []byte, count int64) (entries [][]byte, err error) {
	for len(bundle) > 0 {
		if len(bundle) < 2 || len(bundle)-2 < int(binary.BigEndian.Uint16(bundle)) {
			return nil, errors.New("it ends within an entry")
		}
		end := 2 + int(binary.BigEndian.Uint16(bundle))
		entries = append(entries, bundle[2:end])
		bundle = bundle[end:]
	}
	if int64(len(entries)) != count {
		return nil, fmt.Errorf("%d entries instead of %d", len(entries), count)
	}
	return entries, nil
}

func (l *logSource) Height() int { return 8 }

func (l *logSource) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		content, err := l.read(fmt.Sprintf("tile/%d/%s", tile.L, tilePath(tile.N, int64(tile.W))))
		if err != nil {
			return nil, err
		}
		data = append(data, content)
	}
	return data, nil
}

func (l *logSource) SaveTiles([]tlog.Tile, [][]byte) {}

func (l *logSource) read(path string) ([]byte, error) {
	if !strings.Contains(l.place, "://") {
		return os.ReadFile(filepath.Join(l.place, filepath.FromSlash(path)))
	}
	request, err := http.NewRequest(http.MethodGet, l.place+"/"+path, nil)
	if err != nil {
		return nil, err
	}
	if l.token != "" {
		request.Header.Set("Authorization", "Bearer "+l.token)
	}
	response, err := l.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", path, response.Status)
	}
	return io.ReadAll(io.LimitReader(response.Body, maxResource))
}

// tilePath writes N in groups of three digits, all but the last with an x, and
// the width of a partial tile.
func tilePath(number, width int64) string {
	path := fmt.Sprintf("%03d", number%1000)
	for number >= 1000 {
		number /= 1000
		path = fmt.Sprintf("x%03d/%s", number%1000, path)
	}
	if width < 256 {
		path += fmt.Sprintf(".p/%d", width)
	}
	return path
}
