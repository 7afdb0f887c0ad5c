package faultmodule

// Compile is for the tests, which build more from the Makefile than the module.
var Compile = compile
