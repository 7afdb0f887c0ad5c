package softhsm_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The order of system calls is the promise: what a disk holds after power is lost cannot be seen
// from here, but that each fsync stands where it must can.

// call is one system call, with the lines of the trace where it began and ended.
type call struct {
	text       string
	begin, end int
}

type trace []call

var (
	unfinished = regexp.MustCompile(`^(\d+) +(.*) <unfinished \.\.\.>$`)
	resumed    = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
	complete   = regexp.MustCompile(`^(\d+) +(\w+\(.*)$`)
)

// parseTrace reads the output of strace -f -y. Calls that failed are left out.
func parseTrace(text string) trace {
	var tr trace
	open := map[string]call{} // by thread
	add := func(c call) {
		if !strings.Contains(c.text, " = -1 ") {
			tr = append(tr, c)
		}
	}
	for n, line := range strings.Split(text, "\n") {
		if m := unfinished.FindStringSubmatch(line); m != nil {
			open[m[1]] = call{text: m[2], begin: n}
		} else if m := resumed.FindStringSubmatch(line); m != nil {
			c := open[m[1]]
			c.text, c.end = c.text+m[2], n
			add(c)
		} else if m := complete.FindStringSubmatch(line); m != nil {
			add(call{m[2], n, n})
		}
	}
	return tr
}

// follows finds the calls in order, each beginning after the one before it ended, from line from.
// It returns the line where the last one ended.
func (tr trace) follows(from int, patterns ...string) (int, error) {
	for _, p := range patterns {
		re := regexp.MustCompile("^" + p)
		found := false
		for _, c := range tr {
			if c.begin > from && re.MatchString(c.text) {
				from, found = c.end, true
				break
			}
		}
		if !found {
			return from, fmt.Errorf("after line %d there is no %s", from, p)
		}
	}
	return from, nil
}

// last finds the last such call that ends before a line.
func (tr trace) last(before int, pattern string) (call, error) {
	re := regexp.MustCompile("^" + pattern)
	for i := len(tr) - 1; i >= 0; i-- {
		if tr[i].end < before && re.MatchString(tr[i].text) {
			return tr[i], nil
		}
	}
	return call{}, fmt.Errorf("before line %d there is no %s", before, pattern)
}

// at is where the driver said something.
func (tr trace) at(answer string) (int, error) {
	return tr.follows(-1, `write\(1<[^>]*>, "`+answer)
}

const (
	syncs    = `fsync\(\d+<%s>`
	creates  = `openat\(.*"%s", O_RDWR\|O_CREAT`
	rewrites = `ftruncate\(\d+<%s>, 0`
	writes   = `write\(\d+<%s>`
	renames  = `rename\w*\(.*"%s",.*"%s"`
	removes  = `unlink\w*\(.*"%s"`
)

func calls(pattern string, paths ...string) string {
	var quoted []any
	for _, p := range paths {
		quoted = append(quoted, strings.ReplaceAll(regexp.QuoteMeta(p), `UUID`, `[0-9a-f-]+`))
	}
	return fmt.Sprintf(pattern, quoted...)
}

// scenario is a part of the trace, and whether its order is right.
type scenario struct {
	name  string
	check func(tr trace, dir, token string) error
	needs []string // the steps without which it is wrong
}

var scenarios = []scenario{
	{"a directory is created", func(tr trace, dir, _ string) error {
		from, err := tr.at("begin create")
		if err != nil {
			return err
		}
		fresh := dir + ".new-UUID"
		conf := fresh + "/softhsm2.conf"
		end, err := tr.follows(from,
			calls(writes, conf+".tmp"), calls(syncs, conf+".tmp"), calls(renames, conf+".tmp", conf))
		if err != nil {
			return err
		}
		end, err = tr.follows(end, calls(syncs, fresh), calls(renames, fresh, dir), calls(syncs, filepath.Dir(dir)))
		return tr.before(end, err, "ok create")
	}, []string{"root"}},

	{"a token is initialised", func(tr trace, dir, token string) error {
		from, err := tr.at("begin init")
		if err != nil {
			return err
		}
		if from, err = tr.announced(from, dir); err != nil {
			return err
		}
		object := dir + "/tokens/" + token + "/token.object"
		from, err = tr.follows(from, calls(creates, object))
		if err != nil {
			return err
		}
		end, err := tr.copied(from, "ok init", dir, token, "token.object")
		if err != nil {
			return err
		}
		end, err = tr.follows(end, calls(removes, dir+"/intent"), calls(syncs, dir))
		return tr.before(end, err, "ok init")
	}, []string{"object", "object-dir", "shadow", "shadow-dir", "intent", "root", "copy"}},

	{"a login finds its token in the shadow", func(tr trace, dir, token string) error {
		return tr.safeFirst("login", dir, token, "token.object")
	}, []string{"object", "object-dir", "shadow", "shadow-dir", "copy"}},

	{"a key is durable before it is told", func(tr trace, dir, token string) error {
		key, err := tr.made("mint k", dir, token)
		if err != nil {
			return err
		}
		_, err = tr.copied(key.end, "begin mark", dir, token, filepath.Base(key.text))
		return err
	}, []string{"object", "object-dir", "shadow", "shadow-dir", "copy"}},

	{"a latch finds its key in the shadow", func(tr trace, dir, token string) error {
		key, err := tr.made("mint-without l", dir, token)
		if err != nil {
			return err
		}
		return tr.safeFirst("latch l", dir, token, filepath.Base(key.text))
	}, []string{"object", "object-dir", "shadow", "shadow-dir", "copy"}},

	{"a latch is durable before it is told", func(tr trace, dir, token string) error {
		key, err := tr.made("mint-without l", dir, token)
		if err != nil {
			return err
		}
		from, err := tr.at("begin latch l")
		if err != nil {
			return err
		}
		object := filepath.Base(key.text)
		from, err = tr.follows(from, calls(rewrites, dir+"/tokens/"+token+"/"+object))
		if err != nil {
			return err
		}
		_, err = tr.copied(from, "ok latch l", dir, token, object)
		return err
	}, []string{"object", "object-dir", "shadow", "shadow-dir", "copy"}},

	{"a pair is announced", func(tr trace, dir, token string) error {
		from, err := tr.at("begin pair")
		if err != nil {
			return err
		}
		if from, err = tr.announced(from, dir); err != nil {
			return err
		}
		first, err := tr.made("pair", dir, token)
		if err != nil {
			return err
		}
		if first.begin < from {
			return fmt.Errorf("an object is made in line %d, before the announcement is durable in %d", first.begin, from)
		}
		end, err := tr.copied(first.end, "ok pair", dir, token, filepath.Base(first.text))
		if err != nil {
			return err
		}
		end, err = tr.follows(end, calls(removes, dir+"/intent"), calls(syncs, dir))
		return tr.before(end, err, "ok pair")
	}, []string{"object", "object-dir", "shadow", "shadow-dir", "copy", "intent", "root"}},

	{"a destruction is durable before it is told", func(tr trace, dir, token string) error {
		key, err := tr.made("mint k", dir, token)
		if err != nil {
			return err
		}
		from, err := tr.at("begin destroy k")
		if err != nil {
			return err
		}
		object := filepath.Base(key.text)
		for _, place := range []string{"/tokens/", "/shadow/"} {
			end, err := tr.follows(from, calls(removes, dir+place+token+"/"+object), calls(syncs, dir+place+token))
			if err := tr.before(end, err, "ok destroy k"); err != nil {
				return err
			}
		}
		return nil
	}, []string{"object-dir", "shadow-dir", "copy"}},

	{"a mark is durable before the old one is forgotten", func(tr trace, dir, token string) error {
		old, err := tr.made("raise w 1", dir, token)
		if err != nil {
			return err
		}
		mark, err := tr.made("raise w 2", dir, token)
		if err != nil {
			return err
		}
		file, shadow := filepath.Base(mark.text), dir+"/shadow/"+token+"/"
		if _, err := tr.copied(mark.end, "ok raise w 2", dir, token, file); err != nil {
			return err
		}
		end, err := tr.follows(mark.end, calls(removes, shadow+filepath.Base(old.text)), calls(syncs, filepath.Clean(shadow)))
		if err := tr.before(end, err, "ok raise w 2"); err != nil {
			return err
		}
		for _, chain := range [][]string{{calls(syncs, mark.text)}, {calls(renames, shadow+file+".tmp", shadow+file)}} {
			if _, err := tr.follows(mark.end, append(chain, calls(removes, shadow+filepath.Base(old.text)))...); err != nil {
				return err
			}
		}
		return nil
	}, []string{"object", "object-dir", "shadow", "shadow-dir", "copy"}},

	{"what is torn is put back", func(tr trace, dir, token string) error {
		from, err := tr.at("begin repair")
		if err != nil {
			return err
		}
		shadow, object := dir+"/shadow/"+token+"/UUID.object", dir+"/tokens/"+token+"/UUID.object"
		end := from
		for _, chain := range [][]string{
			{calls(writes, shadow+".tmp"), calls(syncs, shadow+".tmp"), calls(renames, shadow+".tmp", shadow),
				calls(writes, shadow+".tmp"), calls(syncs, shadow+".tmp"), calls(renames, shadow+".tmp", object),
				calls(syncs, filepath.Dir(object))},
			{calls(renames, shadow+".tmp", shadow), calls(syncs, filepath.Dir(shadow))},
		} {
			at, err := tr.follows(from, chain...)
			if err != nil {
				return err
			}
			end = max(end, at)
		}
		return tr.before(end, nil, "ok repair")
	}, []string{"restore", "object-dir", "shadow", "shadow-dir", "copy"}},
}

// before fails unless the driver says answer after line end.
func (tr trace) before(end int, err error, answer string) error {
	if err != nil {
		return err
	}
	said, err := tr.at(answer)
	if err == nil && end > said {
		err = fmt.Errorf("%q is said in line %d, before line %d", answer, said, end)
	}
	return err
}

// announced checks that the intent is durable.
func (tr trace) announced(from int, dir string) (int, error) {
	intent := dir + "/intent"
	return tr.follows(from, calls(writes, intent+".tmp"), calls(syncs, intent+".tmp"),
		calls(renames, intent+".tmp", intent), calls(syncs, dir))
}

// made finds the file of the object that a command makes first. The call's text is its path.
func (tr trace) made(command, dir, token string) (call, error) {
	from, err := tr.at("begin " + command)
	if err != nil {
		return call{}, err
	}
	pattern := regexp.MustCompile(`^openat\(.*"(` + regexp.QuoteMeta(dir+"/tokens/"+token) + `/[0-9a-f-]+\.object)", O_RDWR\|O_CREAT`)
	for _, c := range tr {
		if m := pattern.FindStringSubmatch(c.text); m != nil && c.begin > from {
			return call{m[1], c.begin, c.end}, nil
		}
	}
	return call{}, fmt.Errorf("%s makes nothing", command)
}

// copied checks that the file as SoftHSM last wrote it is synced, and its copy too, before an
// answer. It returns the line where that is so.
func (tr trace) copied(from int, answer, dir, token, object string) (int, error) {
	said, err := tr.at(answer)
	if err != nil {
		return 0, err
	}
	file, shadow := dir+"/tokens/"+token+"/"+object, dir+"/shadow/"+token+"/"+object
	written, err := tr.last(said, calls(writes, file))
	if err != nil {
		return 0, err
	}
	if written.begin < from {
		return 0, fmt.Errorf("%s was not written after line %d", object, from)
	}
	end := 0
	for _, chain := range [][]string{
		{calls(syncs, file)},
		{calls(syncs, filepath.Dir(file))},
		{calls(writes, shadow+".tmp"), calls(syncs, shadow+".tmp"), calls(renames, shadow+".tmp", shadow), calls(syncs, filepath.Dir(shadow))},
	} {
		at, err := tr.follows(written.end, chain...)
		if err := tr.before(at, err, answer); err != nil {
			return 0, err
		}
		end = max(end, at)
	}
	return end, nil
}

// safeFirst checks that a file is durable, and so its copy, before a command rewrites it.
func (tr trace) safeFirst(command, dir, token, object string) error {
	begin, err := tr.at("begin " + command)
	if err != nil {
		return err
	}
	file, shadow := dir+"/tokens/"+token+"/"+object, dir+"/shadow/"+token+"/"+object
	written, err := tr.last(begin, calls(writes, file))
	if err != nil {
		return err
	}
	rewritten, err := tr.follows(begin, calls(rewrites, file))
	if err != nil {
		return err
	}
	for _, chain := range [][]string{
		{calls(syncs, file)},
		{calls(syncs, filepath.Dir(file))},
		{calls(writes, shadow+".tmp"), calls(syncs, shadow+".tmp"), calls(renames, shadow+".tmp", shadow), calls(syncs, filepath.Dir(shadow))},
	} {
		at, err := tr.follows(written.end, chain...)
		if err != nil {
			return err
		}
		if at > rewritten {
			return fmt.Errorf("%s is rewritten in line %d, before line %d", object, rewritten, at)
		}
	}
	return nil
}

// record runs every scenario in one driver, traced.
func record(t *testing.T, binary func() (string, error), env ...string) (tr trace, dir, token string) {
	t.Helper()
	tmp := scratch(t)
	dir, out := filepath.Join(tmp, "softhsm"), filepath.Join(tmp, "trace")
	traced := start(t, binary, dir, env, "strace", "-f", "-y", "-s", "64", "-o", out, "--seccomp-bpf",
		"-e", "trace=openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat")
	traced.send("create", "open", "attach", "init t", "load", "login",
		"mint k", "mark "+filepath.Join(tmp, "mark"),
		"mint-without l", "latch l false 0", "pair p", "destroy k", "raise w 1", "raise w 2", "mint m", "close", "tear", "repair")
	for _, answer := range traced.finish() {
		if strings.HasPrefix(answer, "error") {
			t.Fatal(answer)
		}
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := os.ReadDir(filepath.Join(dir, "tokens"))
	if err != nil || len(tokens) != 1 {
		t.Fatal(tokens, err)
	}
	return parseTrace(string(text)), dir, tokens[0].Name()
}

func TestOrderOfSystemCalls(t *testing.T) {
	tr, dir, token := record(t, driverBinary)
	for _, s := range scenarios {
		if err := s.check(tr, dir, token); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

// With any one fsync left out, the scenarios that need it fail, and only those.
func TestOrderOfSystemCallsNoticesEachSync(t *testing.T) {
	for _, step := range []string{"object", "object-dir", "shadow", "shadow-dir", "restore", "intent", "root", "copy"} {
		t.Run(step, func(t *testing.T) {
			tr, dir, token := record(t, mutantBinary, "SOFTHSM_MUTANT="+step)
			var failed, want []string
			for _, s := range scenarios {
				if s.check(tr, dir, token) != nil {
					failed = append(failed, s.name)
				}
				for _, n := range s.needs {
					if n == step {
						want = append(want, s.name)
					}
				}
			}
			if diff := cmp.Diff(want, failed); diff != "" {
				t.Error(diff)
			}
		})
	}
}
