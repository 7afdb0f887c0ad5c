// Package metrics hands a node's numbers to Prometheus, and is the only one that knows of Prometheus.
//
// Parts of the daemon keep their own numbers, or have a state to derive them from; a [Family] reads them when somebody
// scrapes, and at no other time. What no scrape asks for costs nothing but its counting (package stats).
//
// A label has the values that were declared for it, and no other: what a caller or an operator chooses is none. A
// tenant, key, service or node is never a label. Their number has no bound, and who may read metrics need not know
// them.
package metrics

import (
	"fmt"
	"runtime"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/kekd/kekd/stats"
)

// Kind is a type of metric, in Prometheus' words.
type Kind string

// Histograms are of durations, in seconds, with the bounds of package stats.
const (
	Counter   Kind = "counter"
	Gauge     Kind = "gauge"
	Histogram Kind = "histogram"
)

// Label is one dimension of a family.
type Label struct {
	Name   string
	Values []string // all that there are
}

// Family is one metric, with all values of its labels.
type Family struct {
	Name   string
	Kind   Kind
	Labels []Label
	Help   string // one sentence, without its full stop
	// Read gives what there is now, or nothing. It is called at each scrape, by several goroutines, and must
	// wait for no token and no peer.
	Read func(Reading)
}

// Registry is a set of families.
type Registry struct{ gatherer *prometheus.Registry }

// New makes a registry of families, of the Go runtime and of this process. version is the daemon's. Two families of one
// name, or a name that is none, are an error.
func New(version string, families ...Family) (*Registry, error) {
	build := Family{
		Name: "kekd_build_info", Kind: Gauge, Help: "What runs, always 1",
		Labels: []Label{{"version", []string{version}}, {"goversion", []string{runtime.Version()}}},
		Read:   func(r Reading) { r.Value(1, version, runtime.Version()) },
	}
	r := prometheus.NewRegistry()
	all := []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})}
	for _, f := range append(families, build) {
		names := make([]string, len(f.Labels))
		for i, l := range f.Labels {
			names[i] = l.Name
		}
		all = append(all, &collector{f, prometheus.NewDesc(f.Name, f.Help+".", names, nil)})
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return &Registry{r}, nil
}

// Gatherer is the registry for what looks at all of it.
func (r *Registry) Gatherer() prometheus.Gatherer { return r.gatherer }

// collector is a family as Prometheus takes it.
type collector struct {
	Family
	desc *prometheus.Desc
}

func (c *collector) Describe(to chan<- *prometheus.Desc) { to <- c.desc }

// Collect runs in a goroutine of Prometheus' own: a panic there would end the daemon.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	defer func() {
		if what := recover(); what != nil {
			to <- prometheus.NewInvalidMetric(c.desc, fmt.Errorf("%s: its reading panicked: %T", c.Name, what))
		}
	}()
	c.Read(Reading{c, to})
}

// Reading takes the values of one family.
type Reading struct {
	of *collector
	to chan<- prometheus.Metric
}

// Value is that of a counter or a gauge, for a value of each of the family's labels.
func (r Reading) Value(v float64, labels ...string) {
	kind := prometheus.GaugeValue
	if r.of.Kind == Counter {
		kind = prometheus.CounterValue
	}
	m, err := prometheus.NewConstMetric(r.of.desc, kind, v, labels...)
	r.put(m, err, labels)
}

// Truth is 1 or 0.
func (r Reading) Truth(is bool, labels ...string) {
	v := 0.0
	if is {
		v = 1
	}
	r.Value(v, labels...)
}

// Distribution is a histogram's.
func (r Reading) Distribution(d stats.Distribution, labels ...string) {
	buckets := make(map[float64]uint64, len(d.Counts))
	for i, n := range d.Counts {
		buckets[stats.Bounds[i].Seconds()] = n
	}
	m, err := prometheus.NewConstHistogram(r.of.desc, d.Count, d.Sum.Seconds(), buckets, labels...)
	r.put(m, err, labels)
}

func (r Reading) put(m prometheus.Metric, err error, labels []string) {
	for i, l := range r.of.Labels {
		if err == nil && !slices.Contains(l.Values, labels[i]) {
			err = fmt.Errorf("%s: a value of its label %s was not declared", r.of.Name, l.Name)
		}
	}
	if err != nil {
		m = prometheus.NewInvalidMetric(r.of.desc, err)
	}
	r.to <- m
}
