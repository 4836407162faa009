# Fails when an object file defines a weak symbol. -DNM=... -DOBJECTS=...
execute_process(COMMAND ${NM} --defined-only ${OBJECTS} OUTPUT_VARIABLE symbols
  COMMAND_ERROR_IS_FATAL ANY)
if(symbols MATCHES " [VWvwu] ([^\n]*)")
  message(FATAL_ERROR "${OBJECTS} defines the weak symbol ${CMAKE_MATCH_1}")
endif()
