// Command bench measures a real daemon against what it stands on: the raw PKCS#11 loop, and an
// empty gRPC call on the same socket. It prints one table of one run.
//
// Each line is measured in several rounds that take turns, and the median counts: the machines
// that this runs on are small and shared, and a ratio of two lines means something only if both
// had the same weather.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/kekd/kekd/softhsm-tests/devcluster"
)

type options struct {
	kekd, raw, module string
	faults            string
	round             time.Duration
	rounds            int
	only              string
	tenants           int
	dir               string
	cluster           bool
	kills             int
}

func main() {
	var o options
	flag.StringVar(&o.kekd, "kekd", "bin/kekd", "the daemon")
	flag.StringVar(&o.raw, "raw", "", "the raw loop's program")
	flag.StringVar(&o.module, "module", "/usr/lib/softhsm/libsofthsm2.so", "the PKCS#11 module of the raw loop")
	flag.StringVar(&o.faults, "faults", "", "the module that is a network HSM")
	flag.DurationVar(&o.round, "round", 250*time.Millisecond, "how long each line is measured in each round")
	flag.IntVar(&o.rounds, "rounds", 15, "how many rounds")
	flag.StringVar(&o.only, "only", "", "measure only lines whose name contains this")
	flood := flag.String("flood", "", "be the flood: calls or batches, of the envelope on stdin")
	socket := flag.String("socket", "", "whose kekd.sock to flood")
	flag.StringVar(&o.dir, "dir", "", "with -tenants: keep what is made in this directory, and go on from what an earlier run has made there; a temporary one if empty")
	flag.IntVar(&o.tenants, "tenants", 0, "measure instead what grows with tenants, up to so many (1,000 and more)")
	flag.BoolVar(&o.cluster, "cluster", false, "measure instead clusters of three and five nodes")
	flag.IntVar(&o.kills, "kills", 50, "with -cluster: how often the leader is killed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *flood != "" {
		if err := runFlood(ctx, *flood, *socket); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "bench: flood: %v\n", err)
			os.Exit(1)
		}
		return
	}
	measure := run
	switch {
	case o.tenants > 0:
		measure = scale
	case o.cluster:
		measure = measureCluster
	}
	if err := measure(ctx, o, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// line is one row of the table.
type line struct {
	name     string
	measured []measurement
}

// measurement is one round of one line.
type measurement struct {
	rate     float64       // operations per second
	p50, p99 time.Duration // of a call, whatever it carries; zero: not measured
	cpu      time.Duration // of daemon and workers, per operation
}

func run(ctx context.Context, o options, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "kekd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // the flood is another user's
		return err
	}
	cluster, err := devcluster.Start(ctx, o.kekd, filepath.Join(dir, "kekd"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	d, err := newDaemon(ctx, cluster.Nodes[0])
	if err != nil {
		return err
	}
	defer d.close()

	var lines []*line
	add := func(name string, m measurement) {
		i := slices.IndexFunc(lines, func(l *line) bool { return l.name == name })
		if i < 0 {
			i = len(lines)
			lines = append(lines, &line{name: name})
		}
		lines[i].measured = append(lines[i].measured, m)
	}
	measure := func(l load) error {
		if o.only != "" && !strings.Contains(l.name, o.only) && !l.base {
			return nil
		}
		m, err := l.run(ctx, d, o.round)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		add(l.name, m)
		return nil
	}
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
		for _, l := range d.calls() {
			if err := measure(l); err != nil {
				return err
			}
		}
		rates, err := rawLoop(ctx, o, dir)
		if err != nil {
			return err
		}
		for _, r := range rates {
			add(r.name, measurement{rate: r.rate})
		}
		for _, l := range d.batches() {
			if err := measure(l); err != nil {
				return err
			}
		}
	}
	if strings.Contains(network, o.only) {
		if err := measureNetwork(ctx, o, dir, add); err != nil {
			return fmt.Errorf("%s: %w", network, err)
		}
	}
	print(out, lines)
	return nil
}

type rawRate struct {
	name string
	rate float64
}

// rawLoop runs the C program on a token of its own, so that nobody else uses the token.
func rawLoop(ctx context.Context, o options, dir string) ([]rawRate, error) {
	conf := filepath.Join(dir, "raw.conf")
	if _, err := os.Stat(conf); err != nil {
		tokens := filepath.Join(dir, "raw-tokens")
		if err := os.Mkdir(tokens, 0o700); err != nil {
			return nil, err
		}
		if err := os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
			return nil, err
		}
		// A token for a loop, gone in a minute: its PIN is no secret.
		init := exec.CommandContext(ctx, "softhsm2-util", "--init-token", "--free", "--label", "raw", "--pin", "0000", "--so-pin", "0000")
		init.Env = append(os.Environ(), "SOFTHSM2_CONF="+conf)
		if b, err := init.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, b)
		}
	}
	cmd := exec.CommandContext(ctx, o.raw, o.module, strconv.FormatInt(o.round.Milliseconds(), 10))
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+conf, "PIN=0000")
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("the raw loop: %w", err)
	}
	var rates []rawRate
	for l := range strings.Lines(string(b)) {
		name, rate, ok := strings.Cut(strings.TrimSpace(l), " ")
		r, err := strconv.ParseFloat(rate, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("the raw loop printed %q", l)
		}
		rates = append(rates, rawRate{"raw " + name, r})
	}
	return rates, nil
}

func median[T float64 | time.Duration](ms []measurement, get func(measurement) T) T {
	all := make([]T, len(ms))
	for i, m := range ms {
		all[i] = get(m)
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// print writes the table. A ratio is the median of the rounds' ratios: within a round both lines
// had much the same weather.
func print(out io.Writer, lines []*line) {
	over := func(l *line, base string) string {
		i := slices.IndexFunc(lines, func(l *line) bool { return l.name == base })
		if i < 0 || len(lines[i].measured) != len(l.measured) {
			return "-"
		}
		ratios := make([]measurement, len(l.measured))
		for r := range ratios {
			ratios[r].rate = l.measured[r].rate / lines[i].measured[r].rate
		}
		return fmt.Sprintf("%.2f", median(ratios, func(m measurement) float64 { return m.rate }))
	}
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "what\top/s\tp50\tp99\tdaemon CPU/op\t/ raw token\t/ raw copy\t/ empty call\t")
	for _, l := range lines {
		r := median(l.measured, func(m measurement) float64 { return m.rate })
		p50 := median(l.measured, func(m measurement) time.Duration { return m.p50 })
		p99 := median(l.measured, func(m measurement) time.Duration { return m.p99 })
		cpu := median(l.measured, func(m measurement) time.Duration { return m.cpu })
		empty := "-"
		if _, callers, ok := strings.Cut(l.name, " x"); ok && strings.HasPrefix(l.name, "unary") {
			empty = over(l, "empty call x"+callers)
		} else if strings.HasPrefix(l.name, "Go client") {
			empty = over(l, "empty call x64")
		}
		fmt.Fprintf(w, "%s\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t\n", l.name, r, short(p50), short(p99), short(cpu),
			over(l, "raw token-decrypt"), over(l, "raw copy-decrypt"), empty)
	}
	w.Flush()
}

func short(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%.1fus", float64(d)/1e3)
	default:
		return fmt.Sprintf("%.2fms", float64(d)/1e6)
	}
}
