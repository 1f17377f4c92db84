// The entry point of a C++ test program: runs the tests whose name contains the first argument.
#include "check.h"

int main(int argc, char** argv) { return sora::test::run(argc, argv); }
