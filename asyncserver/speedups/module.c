/* The extension module: its types, and the state that all its files share.
 *
 * Theory of operation. Python classes stay as they are written. Where one stands under `@accelerate`, a type takes its
 * place that has the same attributes, but in a struct, so that C and Python both reach them; where a function does, a
 * Method (method.c). So all behaviour has its definition in Python, classes inherit and override as ever, and C leaves
 * to the Python function whatever is not its usual case.
 *
 * Multi-phase initialisation (PEP 489); all state is the module's (PEP 630), so that each subinterpreter has its own.
 * There is no m_clear: the types, which the collector can clear, break the cycles, and the state is whole to its end.
 */
#include "speedups.h"

#ifdef Py_GIL_DISABLED
#error "asyncserver's extension relies on the GIL; free-threaded Pythons use the Python code"
#endif

static PyObject *import_from(const char *module_name, const char *name) {
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *found = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    return found;
}

static int module_exec(PyObject *module) {
    State *state = PyModule_GetState(module);
    PyType_Spec *specs[] = {&connection_spec, &datagram_spec, &method_spec, &waiter_spec, &operation_spec};
#define INTERN(name, unused)                                                                                           \
    if ((state->name = PyUnicode_InternFromString(#name)) == NULL)                                                     \
        return -1;
    NAMES(INTERN)
    for (size_t i = 0; i < Py_ARRAY_LENGTH(specs); i++) {
        Py_XSETREF(state->operation, PyType_FromModuleAndSpec(module, specs[i], NULL)); /* the last one stays */
        if (state->operation == NULL || PyModule_AddType(module, (PyTypeObject *)state->operation))
            return -1;
    }
    if ((state->socket = import_from("socket", "socket")) == NULL ||
        (state->end_of_stream = import_from("anyio", "EndOfStream")) == NULL)
        return -1;
    return PyModule_AddStringConstant(module, "stamp", STAMP); /* see sources.py */
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    State *self = PyModule_GetState(module);
    STATE_OBJECTS(VISIT)
    return 0;
}

static void module_free(void *module) {
    State *self = PyModule_GetState(module);
    STATE_OBJECTS(CLEAR)
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "asyncserver.speedups._compiled",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__compiled(void) {
    return PyModuleDef_Init(&module_definition);
}
