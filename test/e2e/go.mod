module github.com/fairlead/fairlead/test/e2e

go 1.26.0
