// Stands for CANN's header of the same name: a tiling class is a plain struct with a setter for each field, and the kernel reads that struct.
#ifndef PANGU_HOST_TILINGDATA_BASE_H
#define PANGU_HOST_TILINGDATA_BASE_H

#include <cstdint>
#include <cstring>
#include <stdexcept>

#define BEGIN_TILING_DATA_DEF(name)                                  \
    class name {                                                     \
      public:                                                        \
        void SaveToBuffer(void *buffer, size_t capacity) const {     \
            if (capacity < sizeof(*this)) {                          \
                throw std::runtime_error("tiling data is too long"); \
            }                                                        \
            std::memcpy(buffer, static_cast<const void *>(this), sizeof(*this)); \
        }                                                            \
        size_t GetDataSize() const { return sizeof(*this); }
#define TILING_DATA_FIELD_DEF(type, name) \
    type name = 0;                        \
    void set_##name(type value) { name = value; }
#define END_TILING_DATA_DEF }
#define REGISTER_TILING_DATA_CLASS(op, name) static_assert(sizeof(name) > 0, #op);
#endif
