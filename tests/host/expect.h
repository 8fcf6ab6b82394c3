// A test's only tool: EXPECT(condition, what to print...). It stays on in release builds.
#pragma once
#include <cstdlib>
#include <iostream>

#define EXPECT(condition, ...)                                                                 \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " #condition " is false: " << __VA_ARGS__ \
                << "\n";                                                                       \
      std::exit(1);                                                                            \
    }                                                                                          \
  } while (false)
