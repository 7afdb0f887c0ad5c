package audit

// File is what the journal asks of a segment's file.
type File = file

// WithFiles puts something under the journal's files.
func (o Options) WithFiles(wrap func(File) File) Options {
	o.wrap = wrap
	return o
}
