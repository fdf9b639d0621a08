module echo

go 1.20

require github.com/lxzan/gws v1.9.1
