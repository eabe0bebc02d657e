package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func source(args []string) error {
	flags := flag.NewFlagSet("source", flag.ExitOnError)
	updates := flags.Int("updates", 1, "end after this many updates; 0 is never")
	timeout := flags.Duration("timeout", time.Minute, "fail if they did not come within this time")
	flags.Parse(args)

	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	source, err := newSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()

	for seen := 1; ; seen++ {
		if err := reportIdentity(source); err != nil {
			return err
		}
		if seen == *updates {
			return nil
		}
		if err := source.WaitUntilUpdated(ctx); err != nil {
			return fmt.Errorf("after %d updates: %w", seen, err)
		}
	}
}

// newSource returns once the first identity is there.
func newSource(ctx context.Context) (*workloadapi.X509Source, error) {
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithLogger(lines{})))
}

func reportIdentity(source *workloadapi.X509Source) error {
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	bundle, err := source.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return err
	}
	line := Line{
		Event: "update",
		ID:    svid.ID.String(),
		Chain: len(svid.Certificates),
		Hint:  svid.Hint,
		Roots: roots(bundle),
	}
	line.describe(svid.Certificates[0])
	report(line)
	return nil
}

// lines turns what go-spiffe has to say into lines of ours, so that a test
// sees a refused or broken stream with its gRPC code.
type lines struct{}

func (lines) Debugf(string, ...any) {}
func (lines) Infof(string, ...any)  {}

func (lines) Warnf(format string, args ...any) {
	report(Line{Event: "warning", Error: fmt.Sprintf(format, args...)})
}

func (lines) Errorf(format string, args ...any) {
	report(Line{Event: "error", Error: fmt.Sprintf(format, args...)})
}
