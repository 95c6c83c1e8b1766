// The tools of make check and make generate, apart from Fairlead's own modules so that their needs never reach its build.
module github.com/fairlead/fairlead/test/tools

go 1.26.0

require (
	github.com/bufbuild/protocompile v0.14.1
	google.golang.org/protobuf v1.36.12
)

require golang.org/x/sync v0.23.0 // indirect
