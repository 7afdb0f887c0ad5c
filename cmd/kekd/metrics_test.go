package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/metrics"
)

// described is what docs/METRICS.md says of a metric.
type described struct{ Kind, Unit, Labels, Meaning, Action string }

var quoted = regexp.MustCompile("`([^`]+)`")

func names(text string) (all []string) {
	for _, m := range quoted.FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

func page(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// cells are those of the rows of a page's tables whose first cell has a name that begins with prefix.
func cells(text, prefix string) (rows [][]string) {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "| `"+prefix) {
			continue
		}
		row := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
		}
		rows = append(rows, row)
	}
	return rows
}

// What a node exposes is in the page, and the reverse, with its type, its labels and all of their values.
func TestMetricsAreDocumented(t *testing.T) {
	text := page(t, "../../docs/METRICS.md")
	told := map[string]described{"kekd_build_info": {}} // package metrics' own, found below
	for _, row := range cells(text, "kekd_") {
		name := names(row[0])[0]
		if len(row) != 6 {
			t.Errorf("%s has %d cells", name, len(row))
			continue
		}
		if is, twice := told[name]; twice && is != (described{}) {
			t.Errorf("%s is there twice", name)
		}
		told[name] = described{row[1], row[2], strings.Join(names(row[3]), " "), row[4], row[5]}
	}
	values := map[string][]string{}
	_, table, _ := strings.Cut(text, "## Labels")
	table, _, _ = strings.Cut(table, "## ")
	for _, row := range cells(table, "") {
		values[names(row[0])[0]] = names(row[1])
	}

	families := (&node{}).families() // nothing is read
	exposed := map[string]bool{"kekd_build_info": true}
	for _, f := range families {
		exposed[f.Name] = true
		is, found := told[f.Name]
		if !found {
			t.Errorf("%s is not in the page: %s", f.Name, f.Help)
			continue
		}
		var labels []string
		for _, l := range f.Labels {
			labels = append(labels, l.Name)
			if diff := cmp.Diff(l.Values, values[l.Name]); diff != "" {
				t.Errorf("values of the label %s of %s (-exposed +told):\n%s", l.Name, f.Name, diff)
			}
		}
		if is.Kind != string(f.Kind) || is.Labels != strings.Join(labels, " ") {
			t.Errorf("%s is a %s with the labels %q, the page says a %s with %q", f.Name, f.Kind, labels, is.Kind, is.Labels)
		}
	}
	for name, is := range told {
		if !exposed[name] {
			t.Errorf("%s is in the page, and not exposed", name)
		}
		if is.Meaning == "" || is.Action == "" {
			t.Errorf("%s: the page does not say what it means, and what to do", name)
		}
		for suffix, unit := range map[string]string{"_seconds": "seconds", "_bytes": "bytes"} {
			if strings.HasSuffix(strings.TrimSuffix(name, "_total"), suffix) != (is.Unit == unit) {
				t.Errorf("%s has the unit %q", name, is.Unit)
			}
		}
		if is.Unit == "" {
			t.Errorf("%s has no unit", name)
		}
	}
}

// A state that is added later has to be among what the labels may say.
func TestMetricsHaveAllStates(t *testing.T) {
	for _, next := range []string{hierarchy.TenantState(len(tenantStates) + 1).String(), hierarchy.VersionState(len(versionStates) + 1).String()} {
		if !strings.HasPrefix(next, "state(") {
			t.Errorf("there is a state %s which no metric has", next)
		}
	}
}

// The example rules use metrics that there are, and values of labels that there are.
func TestAlertsUseMetricsThatExist(t *testing.T) {
	known := map[string]metrics.Family{}
	for _, f := range (&node{}).families() {
		known[f.Name] = f
		if f.Kind == metrics.Histogram {
			known[f.Name+"_bucket"] = f
		}
	}
	rules := page(t, "../../docs/alerts/kekd.rules.yml")
	used := map[string]bool{}
	selector := regexp.MustCompile(`\b(kekd_[a-z_]+)(\{[^}]*\})?`)
	matcher := regexp.MustCompile(`([a-z_]+)=~?"([^"]*)"`)
	for _, m := range selector.FindAllStringSubmatch(rules, -1) {
		f, found := known[m[1]]
		if !found {
			t.Errorf("the rules use %s, which is not exposed", m[1])
			continue
		}
		used[m[1]] = true
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			i := slices.IndexFunc(f.Labels, func(is metrics.Label) bool { return is.Name == l[1] })
			if i < 0 {
				t.Errorf("%s has no label %s", f.Name, l[1])
				continue
			}
			for value := range strings.SplitSeq(l[2], "|") {
				if !slices.Contains(f.Labels[i].Values, value) {
					t.Errorf("the label %s of %s is never %q", l[1], f.Name, value)
				}
			}
		}
	}
	if len(used) < 20 {
		t.Errorf("only these are used: %q", slices.Sorted(maps.Keys(used)))
	}
}
